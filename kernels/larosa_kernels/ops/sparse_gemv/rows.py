"""Rows times entries in fp32 multiply-adds: device functions of the sparse product, for every weight and machine."""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.common.packed_half import low_half
from larosa_kernels.ops.sparse_gemv.sums import sum_both_columns, sum_columns


@triton.jit
def _load_entries(source, first, n, ROWS: tl.constexpr, UNROLL: tl.constexpr):
    """Entries or items of UNROLL rows a thread."""
    entries = ()
    for j in tl.static_range(UNROLL):
        at = first + j * ROWS + tl.arange(0, ROWS)
        entries = entries + (tl.load(source + at, mask=at < n, other=0),)
    return entries


@triton.jit
def _load_rows(
    entries, cells, first, n, stride, half, column, ROWS: tl.constexpr, UNROLL: tl.constexpr, SWIGLU: tl.constexpr,
    ALL: tl.constexpr, LISTED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Tiles of UNROLL rows a thread and of the outputs `half` further."""
    fit = column < half
    tiles = ()
    tiles_up = ()
    for j in tl.static_range(UNROLL):
        if LISTED:
            at = entries[j] >> 16
        else:
            at = first + j * ROWS + tl.arange(0, ROWS)
        if ALL:
            taken = at < n
        else:
            taken = entries[j] != 0
        cell = cells + (at.to(tl.int64) if WIDE else at)[:, None] * stride + column[None, :]
        mask = taken[:, None] & fit[None, :]
        tiles = tiles + (tl.load(cell, mask=mask, other=0, eviction_policy="evict_first"),)
        if SWIGLU:
            tiles_up = tiles_up + (tl.load(cell + half, mask=mask, other=0, eviction_policy="evict_first"),)
    return tiles, tiles_up


@triton.jit
def add_rows(
    source, weight, one, n, stride, block, half,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, UNROLL: tl.constexpr, SWIGLU: tl.constexpr, ALL: tl.constexpr,
    LISTED: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Entries [n] times COLUMNS outputs of a block -> fp32 sums [COLUMNS], and the same of the outputs `half` further.

    LISTED: the source holds n items (kept.py) with entries of DTYPE, and only their rows are walked. UNROLL rows a
    thread are under way at once.
    """
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    total_up = total
    entries = _load_entries(source, 0, n, ROWS, UNROLL)
    for first in tl.range(0, n, UNROLL * ROWS, num_stages=1):
        # The next turn's entries first: behind the weights they would wait for them.
        upcoming = _load_entries(source, first + UNROLL * ROWS, n, ROWS, UNROLL)
        tiles, tiles_up = _load_rows(
            entries, weight, first, n, stride, half, column, ROWS, UNROLL, SWIGLU, ALL, LISTED, WIDE
        )
        # 1.0 from memory behind a barrier: what needs it is not moved between the loads in front, where it would wait.
        tl.debug_barrier()
        unit = tl.load(one, volatile=True)
        for j in tl.static_range(UNROLL):
            own = (low_half(entries[j], DTYPE) if LISTED else entries[j].to(tl.float32)) * unit
            total += tiles[j].to(tl.float32) * own[:, None]
            if SWIGLU:
                total_up += tiles_up[j].to(tl.float32) * own[:, None]
        entries = upcoming
    held: tl.constexpr = 128 // weight.dtype.element_ty.primitive_bitwidth
    if SWIGLU:
        out, up = sum_both_columns(total, total_up, held)
    else:
        out = sum_columns(total, held)
        up = out
    return out, up
