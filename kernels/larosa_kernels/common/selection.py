"""The `Keep` pair, readable: which entries of a vector stay.

keep: [B, 2] int32 = (limit_bits, last_index). Entry i of row b stays iff bits(|x_i|) > limit_bits, or they are equal
and i <= last_index. bits() reads the magnitude's bit pattern as an integer; for non-negative floats of one dtype the
order is the same. Top-K (LaRoSA eq. 5) is a limit found per token; a calibrated threshold is a limit given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from larosa_kernels.common.checks import INFINITY_BITS


def magnitude_bits(x: Tensor) -> Tensor:
    """|x| as its bit pattern, int32, in x's shape."""
    if x.dtype == torch.float32:
        return x.view(torch.int32) & 0x7FFFFFFF
    return x.view(torch.int16).to(torch.int32) & 0x7FFF


def kept_mask(x: Tensor, keep: Tensor) -> Tensor:
    """x: [B, n], keep: [B, 2] -> [B, n] bool, true where the entry stays."""
    bits = magnitude_bits(x)
    index = torch.arange(x.shape[1], device=x.device)
    return (bits > keep[:, :1]) | ((bits == keep[:, :1]) & (index <= keep[:, 1:]))


def keep_all(rows: int, n: int, device: torch.device) -> Tensor:
    """The pair that keeps every entry, [rows, 2]."""
    return torch.tensor([0, n], dtype=torch.int32, device=device).repeat(rows, 1)


def limit_from_threshold(threshold: float, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The pair [2] that keeps |x| > threshold: the largest value of `dtype` that is <= threshold, no ties kept."""
    if not 0 <= threshold < float("inf"):
        raise ValueError(f"threshold: expected a finite number >= 0, got {threshold}")
    value = torch.tensor(threshold, dtype=torch.float64)
    bits = int(magnitude_bits(value.to(dtype).reshape(1)))
    if value.to(dtype).double() > value:
        bits -= 1
    return torch.tensor([min(bits, INFINITY_BITS[dtype]), -1], dtype=torch.int32, device=device)
