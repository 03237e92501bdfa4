"""SwiGLU, then selection: h = silu(gate) * up, rounded where transformers rounds (after silu and after the product)."""

from __future__ import annotations

import torch
from torch import Tensor

from larosa_kernels.common.selection import kept_mask
from larosa_kernels.ops.topk_select.reference import select_reference


def swiglu_reference(gate_up: Tensor, gate_limit: Tensor | None = None) -> Tensor:
    """gate_up: [B, 2 I] -> h [B, I]; with `gate_limit` [2], zero where |silu(gate)| does not pass it (CATS)."""
    gate, up = gate_up.chunk(2, dim=1)
    wide = gate.float()
    activated = (wide / (1 + torch.exp(-wide))).to(gate_up.dtype)
    h = (activated.float() * up.float()).to(gate_up.dtype)
    if gate_limit is not None:
        passes = kept_mask(activated.contiguous(), gate_limit.repeat(gate_up.shape[0], 1))
        h = torch.where(passes, h, torch.zeros_like(h))
    return h


def swiglu_select_reference(
    gate_up: Tensor,
    k: int | None,
    ties: str = "strict",
    limit: Tensor | None = None,
    gate_limit: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(h [B, I], keep [B, 2]): the k largest of h, or the calibrated `limit`, or what passed `gate_limit`."""
    h = swiglu_reference(gate_up, gate_limit)
    if gate_limit is not None:
        limit = torch.tensor([0, -1], dtype=torch.int32, device=h.device)
    if limit is not None:
        return h, limit.repeat(h.shape[0], 1)
    return h, select_reference(h, h.shape[1] if k is None else k, ties)
