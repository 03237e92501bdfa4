"""Launch shapes of the quantised product, by the bytes of a row; see README.md. Nothing is tuned while the op runs."""

from __future__ import annotations

import torch
import triton

from larosa_kernels.common.gemv import GemvConfig
from larosa_kernels.ops.sparse_gemv_quantised.product import MOST_STAGES

TILE_BYTES = 128
"""Bytes of a row that a program owns: a whole line of L2, and what eight lanes of a warp load at once."""


def quantised_config(n: int, weight: torch.dtype, row_bytes: int) -> GemvConfig:
    """For an int8 or packed 4-bit (uint8) weight with rows of `row_bytes`, on 132 multiprocessors.

    One program per tile of columns where those fill most multiprocessors. Else programs split a tile's rows, at least
    256 each: two of 8 warps per multiprocessor, or for 4 bits, which have twice as many sums to add up, one of 16 warps
    where that fills them. Where programs cannot be shared out evenly, four stages keep them alike in speed.
    """
    tiles, int4 = int(triton.cdiv(row_bytes, TILE_BYTES)), weight == torch.uint8
    if tiles >= 100:
        num_warps = 16 if tiles <= 132 else 8
        return GemvConfig(unroll=4, num_warps=num_warps, compact=True)
    one_each = int4 and 132 // tiles * tiles >= 100
    num_warps = 16 if one_each else 8
    splits = max(1, min((132 if one_each else 264) // tiles, n // 256))
    return GemvConfig(unroll=MOST_STAGES // num_warps, num_warps=num_warps, compact=True, splits=splits)


def fits_quantised_kernel(weight: torch.Tensor) -> bool:
    """Whether the quantised kernel takes this weight: packed 4 bits, or int8 whose width is a multiple of 32.

    It reads 16 bytes at a time, gates and ups apart. Decided by the weight alone, so that a fused launch and single
    ones take the same kernel.
    """
    return weight.dtype == torch.uint8 or (weight.dtype == torch.int8 and weight.shape[1] % 32 == 0)
