"""The k largest of each row, readable: by a sort."""

from __future__ import annotations

import torch
from torch import Tensor

from larosa_kernels.common.selection import keep_all, magnitude_bits


def select_reference(x: Tensor, k: int, ties: str = "strict") -> Tensor:
    """x: [B, n] -> keep [B, 2] of the k largest magnitudes. Strict: of equal ones the lowest index first.

    `keep`: all that equal the k-th stay. last_index is n where no tie has to go; k = n keeps all by (0, n).
    """
    rows, n = x.shape
    if k == n:
        return keep_all(rows, n, x.device)
    bits = magnitude_bits(x)
    limit = bits.sort(dim=1, descending=True).values[:, k - 1 : k]
    last_index = torch.full_like(limit, n)
    if ties == "strict":
        tie = bits == limit
        room = k - (bits > limit).sum(dim=1, keepdim=True)
        reached = tie.cumsum(dim=1) >= room
        overfull = tie.sum(dim=1, keepdim=True) > room
        last_index = torch.where(overfull, reached.int().argmax(dim=1, keepdim=True).int(), last_index)
    return torch.cat([limit, last_index], dim=1)
