"""Top-K over each row by a sort (LaRoSA eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from larosa_kernels.common.selection import bound_of_all, magnitude_bits


def topk_select_reference(x: Tensor, k: int, ties: str = "strict") -> Tensor:
    """x: [B, n] -> bound [B, 2] of the k largest magnitudes.

    ties: of entries equal to the k-th, `strict` selects the lowest indices until k are selected, `keep` selects all.
    last_index is n where no tie is dropped; k = n selects everything by (0, n).
    """
    rows, n = x.shape
    if k == n:
        return bound_of_all(rows, n, x.device)
    bits = magnitude_bits(x)
    threshold_bits = bits.sort(dim=1, descending=True).values[:, k - 1 : k]
    last_index = torch.full_like(threshold_bits, n)
    if ties == "strict":
        is_tie = bits == threshold_bits
        ties_wanted = k - (bits > threshold_bits).sum(dim=1, keepdim=True)
        reached = is_tie.cumsum(dim=1) >= ties_wanted
        too_many = is_tie.sum(dim=1, keepdim=True) > ties_wanted
        last_index = torch.where(too_many, reached.int().argmax(dim=1, keepdim=True).int(), last_index)
    return torch.cat([threshold_bits, last_index], dim=1)
