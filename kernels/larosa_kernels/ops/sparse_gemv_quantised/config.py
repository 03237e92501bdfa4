"""Launch shapes of the product of codes, by the bytes of a row; nothing is tuned while the op runs."""

from __future__ import annotations

import torch
import triton

from larosa_kernels.common.gemv import GemvConfig
from larosa_kernels.ops.sparse_gemv_quantised.product import MOST_STAGES

PIECE = 128
"""Bytes of a row that a program of codes owns: a whole line of L2, and what eight lanes of a warp load at once."""


def code_config(n: int, weight: torch.dtype, row_bytes: int) -> GemvConfig:
    """For codes of 8 or 4 bits, rows of `row_bytes`.

    One program a piece where those fill most of 132 multiprocessors; else programs share a piece's rows, at least 256
    each: two of 8 warps a multiprocessor; for 4 bits, which have twice as many sums to meet, one of 16 where that fills
    them. Where more programs than multiprocessors cannot be shared out evenly, four stages keep them alike in speed.
    """
    blocks, nibbles = int(triton.cdiv(row_bytes, PIECE)), weight == torch.uint8
    if blocks >= 100:
        num_warps = 16 if blocks <= 132 else 8
        return GemvConfig(unroll=4, num_warps=num_warps, compact=True)
    one_each = nibbles and 132 // blocks * blocks >= 100
    num_warps = 16 if one_each else 8
    splits = max(1, min((132 if one_each else 264) // blocks, n // 256))
    return GemvConfig(unroll=MOST_STAGES // num_warps, num_warps=num_warps, compact=True, splits=splits)


def in_pieces(weight: torch.Tensor) -> bool:
    """Whether codes can be read 16 bytes at a time, gates and ups apart too, as their kernel does: int8 of 32 j wide.

    Of the weight alone, so that one launch a site and single ones take the same kernel.
    """
    return weight.dtype == torch.uint8 or (weight.dtype == torch.int8 and weight.shape[1] % 32 == 0)
