"""RMSNorm, then Top-K: z = RMSNorm(h) * weight, rounded where transformers' LlamaRMSNorm rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from larosa_kernels.ops.topk_select.reference import topk_select_reference


def rmsnorm_reference(h: Tensor, weight: Tensor, eps: float) -> Tensor:
    """h: [B, D], weight: [D] -> z [B, D]. h * rsqrt(mean h^2 + eps) in fp32, rounded, times weight, rounded."""
    wide = h.float()
    scale = torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + eps)
    return (weight.float() * (wide * scale).to(h.dtype).float()).to(h.dtype)


def rmsnorm_topk_reference(
    h: Tensor, weight: Tensor, eps: float, k: int | None, ties: str = "strict", threshold: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(z [B, D], bound [B, 2]): of the k largest of the rounded z, or the calibrated `threshold` [2] for all rows."""
    z = rmsnorm_reference(h, weight, eps)
    if threshold is not None:
        return z, threshold.repeat(h.shape[0], 1)
    return z, topk_select_reference(z, h.shape[1] if k is None else k, ties)
