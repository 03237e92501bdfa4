"""SwiGLU, then Top-K: h = silu(gate) * up, rounded where transformers rounds (after silu and after the product)."""

from __future__ import annotations

import torch
from torch import Tensor

from larosa_kernels.common.selection import selected_mask
from larosa_kernels.ops.topk_select.reference import topk_select_reference


def swiglu_reference(gate_up: Tensor, gate_threshold: Tensor | None = None) -> Tensor:
    """gate_up: [B, 2 I] -> h [B, I]; zero where the bound `gate_threshold` [2] does not select |silu(gate)| (CATS)."""
    gate, up = gate_up.chunk(2, dim=1)
    wide = gate.float()
    activated = (wide / (1 + torch.exp(-wide))).to(gate_up.dtype)
    h = (activated.float() * up.float()).to(gate_up.dtype)
    if gate_threshold is not None:
        selected = selected_mask(activated.contiguous(), gate_threshold.repeat(gate_up.shape[0], 1))
        h = torch.where(selected, h, torch.zeros_like(h))
    return h


def swiglu_topk_reference(
    gate_up: Tensor,
    k: int | None,
    ties: str = "strict",
    threshold: Tensor | None = None,
    gate_threshold: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(h [B, I], bound [B, 2]): of the k largest of h, or `threshold`, or of what `gate_threshold` left."""
    h = swiglu_reference(gate_up, gate_threshold)
    if gate_threshold is not None:
        threshold = torch.tensor([0, -1], dtype=torch.int32, device=h.device)
    if threshold is not None:
        return h, threshold.repeat(h.shape[0], 1)
    return h, topk_select_reference(h, h.shape[1] if k is None else k, ties)
