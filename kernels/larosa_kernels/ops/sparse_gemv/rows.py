"""Weight rows times entries in fp32 multiply-adds: device functions of the sparse product; see README.md."""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.common.packed_half import low_half
from larosa_kernels.ops.sparse_gemv.sums import sum_both_columns, sum_columns


@triton.jit
def _load_entries(p_entries, first, n, ROWS: tl.constexpr, UNROLL: tl.constexpr):
    """Entries, or items of a list, of UNROLL rows per thread."""
    entries = ()
    for j in tl.static_range(UNROLL):
        o_entry = first + j * ROWS + tl.arange(0, ROWS)
        entries = entries + (tl.load(p_entries + o_entry, mask=o_entry < n, other=0),)
    return entries


@triton.jit
def _load_rows(
    entries, weight, first, n, stride, half, o_col, ROWS: tl.constexpr, UNROLL: tl.constexpr, SWIGLU: tl.constexpr,
    ALL: tl.constexpr, LISTED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Tiles of UNROLL rows per thread, and with SWIGLU those of the columns `half` further."""
    m_col = o_col < half
    tiles = ()
    tiles_up = ()
    for j in tl.static_range(UNROLL):
        if LISTED:
            o_row = entries[j] >> 16
        else:
            o_row = first + j * ROWS + tl.arange(0, ROWS)
        if ALL:
            m_row = o_row < n
        else:
            m_row = entries[j] != 0
        p_tile = weight + (o_row.to(tl.int64) if WIDE else o_row)[:, None] * stride + o_col[None, :]
        m_tile = m_row[:, None] & m_col[None, :]
        tiles = tiles + (tl.load(p_tile, mask=m_tile, other=0, eviction_policy="evict_first"),)
        if SWIGLU:
            tiles_up = tiles_up + (tl.load(p_tile + half, mask=m_tile, other=0, eviction_policy="evict_first"),)
    return tiles, tiles_up


@triton.jit
def add_rows(
    p_entries, weight, one, n, stride, i_block, half,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, UNROLL: tl.constexpr, SWIGLU: tl.constexpr, ALL: tl.constexpr,
    LISTED: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Entries [n] times COLUMNS outputs of a block -> fp32 sums [COLUMNS], and the same of the outputs `half` further.

    LISTED: p_entries holds n items (common/compaction.py) with entries of DTYPE, and only their rows are walked.
    ALL: no row is dropped. stride: entries per row of the weight. UNROLL rows per thread are in flight at once.
    """
    o_col = i_block * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    total_up = total
    entries = _load_entries(p_entries, 0, n, ROWS, UNROLL)
    for first in tl.range(0, n, UNROLL * ROWS, num_stages=1):
        # The next turn's entries first: behind the weights they would wait for them.
        next_entries = _load_entries(p_entries, first + UNROLL * ROWS, n, ROWS, UNROLL)
        tiles, tiles_up = _load_rows(
            entries, weight, first, n, stride, half, o_col, ROWS, UNROLL, SWIGLU, ALL, LISTED, WIDE
        )
        # 1.0 from memory behind a barrier: what needs it is not moved between the loads in front, where it would wait.
        tl.debug_barrier()
        unit = tl.load(one, volatile=True)
        for j in tl.static_range(UNROLL):
            b_entry = (low_half(entries[j], DTYPE) if LISTED else entries[j].to(tl.float32)) * unit
            total += tiles[j].to(tl.float32) * b_entry[:, None]
            if SWIGLU:
                total_up += tiles_up[j].to(tl.float32) * b_entry[:, None]
        entries = next_entries
    per_thread: tl.constexpr = 128 // weight.dtype.element_ty.primitive_bitwidth
    if SWIGLU:
        b_out, b_up = sum_both_columns(total, total_up, per_thread)
    else:
        b_out = sum_columns(total, per_thread)
        b_up = b_out
    return b_out, b_up
