"""The quantised product in integers, as README.md derives it: the kernel gives these bits on every launch shape."""

from __future__ import annotations

import torch
from torch import Tensor

from larosa_kernels.common.selection import selected_mask
from larosa_kernels.ops.sparse_gemv_quantised.packing import unpack_qweight, unpack_scales


def fixed_point_factors(largest: Tensor) -> tuple[Tensor, Tensor]:
    """largest: fp32 -> (2^e, 2^-e) with largest 2^e < 2^22, e <= 126; the second is NaN unless largest is finite."""
    exponent = (largest.view(torch.int32) >> 23) & 255
    up = torch.minimum(275 - exponent, torch.full_like(exponent, 253))
    to_fixed, from_fixed = ((each << 23).view(torch.float32) for each in (up, 254 - up))
    return to_fixed, torch.where(exponent == 255, torch.nan, from_fixed)


def integer_gemv_reference(
    x: Tensor, bound: Tensor, weight: Tensor, scale: Tensor, out_features: int, max_scale: float, paired: bool = False
) -> Tensor:
    """x: [B, n] bf16 or fp16, bound: [B, 2] -> y [B, out_features] in x's dtype; weight and scale as in api.py."""
    selected, wide = selected_mask(x, bound), x.float()
    packed = weight.dtype == torch.uint8
    largest = wide.abs().amax(1, keepdim=True)
    to_fixed, from_fixed = fixed_point_factors(largest * max_scale if packed else largest)
    entries = torch.where(selected, wide * to_fixed, 0)[:, :, None]  # [B, n, 1], exact: times a power of two
    if packed:  # a dropped row's scales may hold anything
        scales = torch.where(selected[:, :, None], unpack_scales(scale, out_features, paired), 0)
        total = _integer_sum(entries * scales, unpack_qweight(weight, out_features, paired))
        return (total * from_fixed).to(x.dtype)
    return (_integer_sum(entries, weight) * from_fixed * scale).to(x.dtype)


def _integer_sum(entries: Tensor, qweight: Tensor) -> Tensor:
    """Entries [B, n, m or 1] rounded to integers, times qweight [n, m], summed exactly -> [B, m] fp32."""
    return (entries.nan_to_num(0, 0, 0).round().long() * qweight.long()).sum(1).float()
