"""Matrices of 4-bit codes as the sparse product reads them: input-major, in blocks of 256 outputs, 128 bytes a row.

A block has four groups of 64 outputs, each with one scale for every input: weight = code * scale. Of a group's 8 words
of 8 codes, word g of all four groups lies side by side, in 16 bytes, which one lane loads: on the tensor cores an entry
meets one scale for all lanes of a product, so the lanes have to share out the words of one group (codes.py).

weight [n, 128 blocks] uint8: word g of group c is word 4 g + c of a block's 32; its bits 4 j to 4 j + 3 hold output
64 c + 8 g + j, as code + 8. scale [blocks, n, 4] bfloat16. What fills the last block has scales of zero.

Outputs follow each other, 256 a block; or they are `paired`, as SwiGLU wants them: 128 gates, which are the first half
of all outputs, then the 128 ups that belong to them.
"""

from __future__ import annotations

import torch
from torch import Tensor

GROUP = 64
"""Outputs of a row that share a scale."""
BLOCK = 256
"""Outputs of a block."""
_ZERO = 8


def block_count(m: int, paired: bool = False) -> int:
    """Blocks that m outputs take."""
    return -(-m // BLOCK) if not paired else -(-m // 2 // (BLOCK // 2))


def _places(m: int, paired: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """(the output at each place of all blocks, whether there is one)."""
    place = torch.arange(block_count(m, paired) * BLOCK, device=device)
    if not paired:
        return place.clamp(max=m - 1), place < m
    half, within = m // 2, place % BLOCK
    own = place // BLOCK * (BLOCK // 2) + within % (BLOCK // 2)
    return own.clamp(max=half - 1) + within // (BLOCK // 2) * half, own < half


def _check_paired(m: int, paired: bool) -> None:
    if paired and m % (2 * GROUP):
        raise ValueError(f"m: paired outputs are gates and ups of whole groups of {GROUP}, got {m}")


def pack_codes(codes: Tensor, paired: bool = False) -> Tensor:
    """codes [n, m] int8, -8 .. 7 -> [n, 128 blocks] uint8."""
    if codes.dim() != 2 or codes.dtype != torch.int8:
        raise ValueError(f"codes: expected [n, m] of int8, got {list(codes.shape)} of {codes.dtype}")
    if codes.numel() and not -_ZERO <= int(codes.min()) <= int(codes.max()) < _ZERO:
        raise ValueError(f"codes: expected -8 to 7, got {int(codes.min())} to {int(codes.max())}")
    _check_paired(codes.shape[1], paired)
    output, there = _places(codes.shape[1], paired, codes.device)
    placed = (torch.where(there, codes[:, output], 0) + _ZERO).to(torch.uint8)
    both = placed[:, 0::2] | (placed[:, 1::2] << 4)
    return both.view(len(codes), -1, 4, 8, 4).transpose(2, 3).reshape(len(codes), -1).contiguous()


def pack_scales(scale: Tensor, m: int, paired: bool = False) -> Tensor:
    """Scales by group of the outputs in their order [groups, n] -> [blocks, n, 4]."""
    expected = -(-m // GROUP)
    if scale.dim() != 2 or len(scale) != expected:
        raise ValueError(f"scale: expected [{expected}, n] for {m} outputs, got {list(scale.shape)}")
    _check_paired(m, paired)
    output, there = (each[::GROUP] for each in _places(m, paired, scale.device))
    placed = torch.where(there[:, None], scale[output // GROUP], torch.zeros_like(scale[:1]))
    return placed.view(-1, 4, scale.shape[1]).transpose(1, 2).contiguous()


def unpack_codes(packed: Tensor, m: int, paired: bool = False) -> Tensor:
    """The codes [n, m] int8 in `packed`."""
    bytes_ = packed.view(len(packed), -1, 8, 4, 4).transpose(2, 3).reshape(len(packed), -1)
    placed = torch.stack([bytes_ & 15, bytes_ >> 4], -1).flatten(1).to(torch.int8) - _ZERO
    output, there = _places(m, paired, packed.device)
    codes = torch.empty(len(packed), m, dtype=torch.int8, device=packed.device)
    codes[:, output[there]] = placed[:, there]
    return codes


def unpacked(packed: Tensor, scale: Tensor, m: int, paired: bool = False) -> Tensor:
    """The weights [n, m] float32."""
    output, there = _places(m, paired, packed.device)
    placed = scale.float().transpose(1, 2).reshape(-1, packed.shape[0]).repeat_interleave(GROUP, 0)[there]
    factor = torch.empty(m, len(packed), dtype=torch.float32, device=packed.device)
    factor[output[there]] = placed
    return unpack_codes(packed, m, paired).float() * factor.T
