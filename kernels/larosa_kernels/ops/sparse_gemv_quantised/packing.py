"""4-bit weights as the sparse product reads them: input-major, in blocks of 256 outputs, 128 bytes per row.

README.md draws the layout. Nothing here needs Triton.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 64
"""Outputs of a row that share a scale."""
BLOCK = 256
"""Outputs of a block."""
_OFFSET = 8
"""A weight q in -8 .. 7 is stored as q + 8."""


def block_count(m: int, paired: bool = False) -> int:
    """Blocks that m outputs take."""
    return -(-m // BLOCK) if not paired else -(-m // 2 // (BLOCK // 2))


def _outputs_in_order(m: int, paired: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """(the output stored at each place of all blocks, whether the place holds one)."""
    place = torch.arange(block_count(m, paired) * BLOCK, device=device)
    if not paired:
        return place.clamp(max=m - 1), place < m
    half, within = m // 2, place % BLOCK
    pair = place // BLOCK * (BLOCK // 2) + within % (BLOCK // 2)
    return pair.clamp(max=half - 1) + within // (BLOCK // 2) * half, pair < half


def _check_paired(m: int, paired: bool) -> None:
    if paired and m % (2 * GROUP):
        raise ValueError(f"paired: expected gates and ups in whole groups of {GROUP}, got {m} outputs")


def pack_qweight(qweight: Tensor, paired: bool = False) -> Tensor:
    """qweight: [n, m] int8 in -8 .. 7 -> [n, 128 blocks] uint8.

    paired: the outputs are gates, then as many ups, and a block holds 128 gates, then their ups.
    Raises ValueError for another dtype, a value outside of -8 .. 7, or pairs that do not fill whole groups.
    """
    if qweight.dim() != 2 or qweight.dtype != torch.int8:
        raise ValueError(f"qweight: expected [n, m] of int8, got {list(qweight.shape)} of {qweight.dtype}")
    if qweight.numel() and not -_OFFSET <= int(qweight.min()) <= int(qweight.max()) < _OFFSET:
        raise ValueError(f"qweight: expected -8 to 7, got {int(qweight.min())} to {int(qweight.max())}")
    _check_paired(qweight.shape[1], paired)
    output, occupied = _outputs_in_order(qweight.shape[1], paired, qweight.device)
    nibbles = (torch.where(occupied, qweight[:, output], 0) + _OFFSET).to(torch.uint8)
    both = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
    return both.view(len(qweight), -1, 4, 8, 4).transpose(2, 3).reshape(len(qweight), -1).contiguous()


def pack_scales(scale: Tensor, m: int, paired: bool = False) -> Tensor:
    """scale: [groups, n], by groups of 64 outputs in their order -> [blocks, n, 4]; places without outputs get 0.

    Raises ValueError unless there is a row for each group of the m outputs.
    """
    expected = -(-m // GROUP)
    if scale.dim() != 2 or len(scale) != expected:
        raise ValueError(f"scale: expected [{expected}, n] for {m} outputs, got {list(scale.shape)}")
    _check_paired(m, paired)
    output, occupied = (each[::GROUP] for each in _outputs_in_order(m, paired, scale.device))
    placed = torch.where(occupied[:, None], scale[output // GROUP], torch.zeros_like(scale[:1]))
    return placed.view(-1, 4, scale.shape[1]).transpose(1, 2).contiguous()


def unpack_qweight(packed: Tensor, m: int, paired: bool = False) -> Tensor:
    """The inverse of `pack_qweight`: [n, m] int8."""
    bytes_ = packed.view(len(packed), -1, 8, 4, 4).transpose(2, 3).reshape(len(packed), -1)
    placed = torch.stack([bytes_ & 15, bytes_ >> 4], -1).flatten(1).to(torch.int8) - _OFFSET
    output, occupied = _outputs_in_order(m, paired, packed.device)
    qweight = torch.empty(len(packed), m, dtype=torch.int8, device=packed.device)
    qweight[:, output[occupied]] = placed[:, occupied]
    return qweight


def unpack_scales(scale: Tensor, m: int, paired: bool = False) -> Tensor:
    """scale: [blocks, n, 4] -> one per output, [n, m] float32."""
    output, occupied = _outputs_in_order(m, paired, scale.device)
    placed = scale.float().transpose(1, 2).reshape(-1, scale.shape[1]).repeat_interleave(GROUP, 0)[occupied]
    by_output = torch.empty(m, scale.shape[1], dtype=torch.float32, device=scale.device)
    by_output[output[occupied]] = placed
    return by_output.T


def dequantise(packed: Tensor, scale: Tensor, m: int, paired: bool = False) -> Tensor:
    """packed: [n, 128 blocks] uint8, scale: [blocks, n, 4] -> the weights [n, m] float32."""
    return unpack_qweight(packed, m, paired).float() * unpack_scales(scale, m, paired)
