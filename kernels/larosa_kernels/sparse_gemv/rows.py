"""Rows times entries in fp32 multiply-adds: device functions of the sparse product, for every weight and machine."""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.pairs import low_half
from larosa_kernels.sparse_gemv.codes import place_factor, spread_bytes, spread_nibbles


@triton.jit
def _add_two(a, b, c, d):
    return a + c, b + d


@triton.jit
def _spread(tile, unit, NIBBLES: tl.constexpr, BYTES: tl.constexpr, INTERPRETED: tl.constexpr):
    """A tile as fp32; codes of 4 bits each times its place."""
    if NIBBLES:
        found = spread_nibbles(tile, unit)
    elif BYTES:
        found = spread_bytes(tile, INTERPRETED)
    else:
        found = tile.to(tl.float32)
    return found


@triton.jit
def add_rows(
    source, weight, scale, scale_up, one, n, stride, block, half,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, UNROLL: tl.constexpr, SWIGLU: tl.constexpr, NIBBLES: tl.constexpr,
    BYTES: tl.constexpr, ALL: tl.constexpr, LISTED: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Entries [n] times COLUMNS outputs of a block -> fp32 sums [COLUMNS], and the same of the outputs `half` further.

    LISTED: the source holds n items (kept.py) with entries of DTYPE, and only their rows are walked.
    stride and half count words of 8 (NIBBLES) or 4 (BYTES) codes, or weights. UNROLL rows a thread are loaded at once.
    """
    per: tl.constexpr = 8 if NIBBLES else 4 if BYTES else 1
    cells = weight.to(tl.pointer_type(tl.int32)) if per > 1 else weight
    row = tl.arange(0, ROWS)
    word = block * (COLUMNS // per) + tl.arange(0, COLUMNS // per)
    fit = word < half
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    total_up = total
    entries = ()
    for j in tl.static_range(UNROLL):
        at = j * ROWS + row
        entries = entries + (tl.load(source + at, mask=at < n, other=0),)
    for first in tl.range(0, n, UNROLL * ROWS, num_stages=1):
        # The next turn's entries first: behind the weights they would wait for them.
        upcoming = ()
        for j in tl.static_range(UNROLL):
            at = first + (UNROLL + j) * ROWS + row
            upcoming = upcoming + (tl.load(source + at, mask=at < n, other=0),)
        tiles = ()
        tiles_up = ()
        scales = ()
        scales_up = ()
        for j in tl.static_range(UNROLL):
            if LISTED:
                at = entries[j] >> 16
            else:
                at = first + j * ROWS + row
            if ALL:
                taken = at < n
            else:
                taken = entries[j] != 0
            cell = cells + (at.to(tl.int64) if WIDE else at)[:, None] * stride + word[None, :]
            mask = taken[:, None] & fit[None, :]
            tiles = tiles + (tl.load(cell, mask=mask, other=0, eviction_policy="evict_first"),)
            if SWIGLU:
                tiles_up = tiles_up + (tl.load(cell + half, mask=mask, other=0, eviction_policy="evict_first"),)
            if NIBBLES:
                scales = scales + (tl.load(scale + at, mask=taken, other=0.0),)
                if SWIGLU:
                    scales_up = scales_up + (tl.load(scale_up + at, mask=taken, other=0.0),)
        # A factor of 1 that is loaded behind the barrier keeps the compiler from waiting for a tile between two loads.
        tl.debug_barrier()
        unit = tl.load(one, volatile=True)
        for j in tl.static_range(UNROLL):
            value = (low_half(entries[j], DTYPE) if LISTED else entries[j].to(tl.float32)) * unit
            own = value * scales[j].to(tl.float32) if NIBBLES else value
            total += _spread(tiles[j], unit, NIBBLES, BYTES, INTERPRETED) * own[:, None]
            if SWIGLU:
                own = value * scales_up[j].to(tl.float32) if NIBBLES else value
                total_up += _spread(tiles_up[j], unit, NIBBLES, BYTES, INTERPRETED) * own[:, None]
        entries = upcoming
    if SWIGLU:
        out, up = tl.reduce((total, total_up), 0, _add_two)
    else:
        out = tl.sum(total, 0)
        up = out
    if NIBBLES:
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        out = out * place_factor(column)
        up = up * place_factor(column)
    return out, up
