"""RMSNorm, then selection: z = RMSNorm(h) * weight, rounded where transformers' LlamaRMSNorm rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from larosa_kernels.ops.topk_select.reference import select_reference


def norm_reference(h: Tensor, weight: Tensor, eps: float) -> Tensor:
    """h: [B, D], weight: [D] -> z [B, D]. h * rsqrt(mean h^2 + eps) in fp32, rounded, times weight, rounded."""
    wide = h.float()
    scale = torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + eps)
    return (weight.float() * (wide * scale).to(h.dtype).float()).to(h.dtype)


def norm_select_reference(
    h: Tensor, weight: Tensor, eps: float, k: int | None, ties: str = "strict", limit: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(z [B, D], keep [B, 2]): the k largest of the rounded z, or every row under the calibrated `limit` [2]."""
    z = norm_reference(h, weight, eps)
    if limit is not None:
        return z, limit.repeat(h.shape[0], 1)
    return z, select_reference(z, h.shape[1] if k is None else k, ties)
