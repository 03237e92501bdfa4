"""Rows times entries in fp32 multiply-adds: device functions of the sparse product, for every weight and machine."""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.pairs import low_half
from larosa_kernels.sparse_gemv.codes import place_factor, spread_bytes, spread_nibbles
from larosa_kernels.sparse_gemv.sums import sum_both_columns, sum_columns


@triton.jit
def _spread(tile, unit, NIBBLES: tl.constexpr, BYTES: tl.constexpr, HALVES: tl.constexpr, INTERPRETED: tl.constexpr):
    """A tile as fp32; codes of 4 bits each times its place."""
    if NIBBLES:
        found = spread_nibbles(tile, unit)
    elif BYTES:
        found = spread_bytes(tile, unit, HALVES, INTERPRETED)
    else:
        found = tile.to(tl.float32)
    return found


@triton.jit
def _meet(one, stride, HALVES: tl.constexpr, LISTED: tl.constexpr, INTERPRETED: tl.constexpr):
    """1.0 behind a barrier: what needs it is not moved between the loads in front, where it would wait for a tile.

    From memory it arrives behind all tiles, for loads return in order. HALVES: from the barrier itself, which counts
    threads of negative stride, so that the tiles in front may still be under way. LISTED too: from a vote of the warp,
    for then warps that run apart gain more than the order of their loads.
    """
    if HALVES and not INTERPRETED:
        vote: tl.constexpr = "vote.sync.ballot.b32 $0, p, 0xffffffff;"
        barrier: tl.constexpr = "barrier.cta.red.popc.aligned.u32 $0, 0, p;"
        ones = tl.inline_asm_elementwise(
            "{ .reg .pred p; setp.lt.s32 p, $1, 0; " + (vote if LISTED else barrier) + " or.b32 $0, $0, 0x3F800000; }",
            "=r,r", [stride], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
        unit = ones.to(tl.float32, bitcast=True)
    else:
        tl.debug_barrier()
        unit = tl.load(one, volatile=True)
    return unit


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
    entries, cells, scale, scale_up, first, n, stride, half, word,
    ROWS: tl.constexpr, UNROLL: tl.constexpr, SWIGLU: tl.constexpr, NIBBLES: tl.constexpr, ALL: tl.constexpr,
    LISTED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Tiles of UNROLL rows a thread and of the outputs `half` further, and the scales of both."""
    fit = word < half
    tiles = ()
    tiles_up = ()
    scales = ()
    scales_up = ()
    for j in tl.static_range(UNROLL):
        if LISTED:
            at = entries[j] >> 16
        else:
            at = first + j * ROWS + tl.arange(0, ROWS)
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
    return tiles, tiles_up, scales, scales_up


@triton.jit
def _sum_rows(
    total, total_up, entries, loaded, one, stride,
    UNROLL: tl.constexpr, SWIGLU: tl.constexpr, NIBBLES: tl.constexpr, BYTES: tl.constexpr, LISTED: tl.constexpr,
    HALVES: tl.constexpr, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Both sums with what `_load_rows` gave."""
    tiles, tiles_up, scales, scales_up = loaded
    unit = _meet(one, stride, HALVES, LISTED, INTERPRETED)
    for j in tl.static_range(UNROLL):
        value = (low_half(entries[j], DTYPE) if LISTED else entries[j].to(tl.float32)) * unit
        own = value * scales[j].to(tl.float32) if NIBBLES else value
        total += _spread(tiles[j], unit, NIBBLES, BYTES, HALVES, INTERPRETED) * own[:, None]
        if SWIGLU:
            own = value * scales_up[j].to(tl.float32) if NIBBLES else value
            total_up += _spread(tiles_up[j], unit, NIBBLES, BYTES, HALVES, INTERPRETED) * own[:, None]
    return total, total_up


@triton.jit
def _walk(
    source, cells, scale, scale_up, one, n, stride, half, word, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    UNROLL: tl.constexpr, SWIGLU: tl.constexpr, NIBBLES: tl.constexpr, BYTES: tl.constexpr, ALL: tl.constexpr,
    LISTED: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Turn by turn: UNROLL rows a thread are loaded, then summed."""
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    total_up = total
    entries = _load_entries(source, 0, n, ROWS, UNROLL)
    for first in tl.range(0, n, UNROLL * ROWS, num_stages=1):
        # The next turn's entries first: behind the weights they would wait for them.
        upcoming = _load_entries(source, first + UNROLL * ROWS, n, ROWS, UNROLL)
        loaded = _load_rows(
            entries, cells, scale, scale_up, first, n, stride, half, word,
            ROWS, UNROLL, SWIGLU, NIBBLES, ALL, LISTED, WIDE,
        )  # fmt: skip
        total, total_up = _sum_rows(
            total, total_up, entries, loaded, one, stride,
            UNROLL, SWIGLU, NIBBLES, BYTES, LISTED, False, DTYPE, INTERPRETED,
        )  # fmt: skip
        entries = upcoming
    return total, total_up


@triton.jit
def _walk_in_halves(
    source, cells, scale, scale_up, one, n, stride, half, word, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
    UNROLL: tl.constexpr, SWIGLU: tl.constexpr, NIBBLES: tl.constexpr, BYTES: tl.constexpr, ALL: tl.constexpr,
    LISTED: tl.constexpr, DTYPE: tl.constexpr, WIDE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The same with two halves of a turn, of UNROLL rows a thread each: one is under way while the other is summed.

    Without a list nothing waits for more than it needs. With one (or a mask) the second half's addresses wait for items
    that arrive with the first half's tiles, so one half at most is under way when a turn begins.
    """
    STEP: tl.constexpr = UNROLL * ROWS
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    total_up = total
    this = _load_entries(source, 0, n, ROWS, UNROLL)
    second = _load_entries(source, STEP, n, ROWS, UNROLL)
    loaded = _load_rows(
        this, cells, scale, scale_up, 0, n, stride, half, word, ROWS, UNROLL, SWIGLU, NIBBLES, ALL, LISTED, WIDE
    )
    for first in tl.range(0, n, 2 * STEP, num_stages=1):
        third = _load_entries(source, first + 2 * STEP, n, ROWS, UNROLL)
        behind = _load_rows(
            second, cells, scale, scale_up, first + STEP, n, stride, half, word,
            ROWS, UNROLL, SWIGLU, NIBBLES, ALL, LISTED, WIDE,
        )  # fmt: skip
        total, total_up = _sum_rows(
            total, total_up, this, loaded, one, stride,
            UNROLL, SWIGLU, NIBBLES, BYTES, LISTED, True, DTYPE, INTERPRETED,
        )  # fmt: skip
        fourth = _load_entries(source, first + 3 * STEP, n, ROWS, UNROLL)
        loaded = _load_rows(
            third, cells, scale, scale_up, first + 2 * STEP, n, stride, half, word,
            ROWS, UNROLL, SWIGLU, NIBBLES, ALL, LISTED, WIDE,
        )  # fmt: skip
        total, total_up = _sum_rows(
            total, total_up, second, behind, one, stride,
            UNROLL, SWIGLU, NIBBLES, BYTES, LISTED, True, DTYPE, INTERPRETED,
        )  # fmt: skip
        this = third
        second = fourth
    return total, total_up


@triton.jit
def add_rows(
    source, weight, scale, scale_up, one, n, stride, block, half,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, UNROLL: tl.constexpr, SWIGLU: tl.constexpr, NIBBLES: tl.constexpr,
    BYTES: tl.constexpr, ALL: tl.constexpr, LISTED: tl.constexpr, HALVES: tl.constexpr, DTYPE: tl.constexpr,
    WIDE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Entries [n] times COLUMNS outputs of a block -> fp32 sums [COLUMNS], and the same of the outputs `half` further.

    LISTED: the source holds n items (kept.py) with entries of DTYPE, and only their rows are walked. stride and half
    count words of 8 (NIBBLES) or 4 (BYTES) codes, or weights. UNROLL rows a thread are under way at once.
    """
    per: tl.constexpr = 8 if NIBBLES else 4 if BYTES else 1
    cells = weight.to(tl.pointer_type(tl.int32)) if per > 1 else weight
    word = block * (COLUMNS // per) + tl.arange(0, COLUMNS // per)
    if HALVES:
        total, total_up = _walk_in_halves(
            source, cells, scale, scale_up, one, n, stride, half, word,
            COLUMNS, ROWS, UNROLL // 2, SWIGLU, NIBBLES, BYTES, ALL, LISTED, DTYPE, WIDE, INTERPRETED,
        )  # fmt: skip
    else:
        total, total_up = _walk(
            source, cells, scale, scale_up, one, n, stride, half, word,
            COLUMNS, ROWS, UNROLL, SWIGLU, NIBBLES, BYTES, ALL, LISTED, DTYPE, WIDE, INTERPRETED,
        )  # fmt: skip
    held: tl.constexpr = 32 if NIBBLES else 128 // weight.dtype.element_ty.primitive_bitwidth
    if SWIGLU:
        out, up = sum_both_columns(total, total_up, held)
    else:
        out = sum_columns(total, held)
        up = out
    if NIBBLES:
        column = block * COLUMNS + tl.arange(0, COLUMNS)
        out = out * place_factor(column)
        up = up * place_factor(column)
    return out, up
