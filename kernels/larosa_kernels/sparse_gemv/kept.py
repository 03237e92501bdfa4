"""The list of kept rows: device functions of the sparse product.

An item is an int32: the row, below 2^15 (search_config.MAX_WIDTH), in its high half, the 16 bits of the entry in its
low half. Rows ascend, zeros are not listed, so an item is never 0. Word i of x, two entries, is held by lane i % 32 and
by no other: then what a warp stores at once lies side by side, in 4 or 5 sectors of 32 bytes where half is kept. (With
four words a lane, as they are loaded without a list, it would be 16.)

Ties at the limit and the places of the items come out of one scan: 8 bits count entries above the limit, 8 those at
it, of two turns of the program's threads in one word; only totals of warps cross warps.
"""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.search import stays


@triton.jit
def word_indices(COUNT: tl.constexpr):
    """0 .. COUNT - 1, one neighbouring word a lane: the hint keeps loads from being 16 bytes wide."""
    return tl.max_contiguous(tl.arange(0, COUNT), 1)


@triton.jit
def count_before(codes, THREADS: tl.constexpr):
    """How many were counted in front of each word. codes: [words], counts to 2 in bits 0 and 8 -> bits 0 and 16."""
    WARPS: tl.constexpr = THREADS // 32
    TURNS: tl.constexpr = codes.shape[0] // THREADS
    PAIR: tl.constexpr = 2 if TURNS > 1 else 1
    place = (16 * tl.arange(0, PAIR))[None, :, None]
    pairs = tl.reshape(codes, (TURNS // PAIR, PAIR, WARPS, 32)) << place[:, :, :, None]
    pairs = tl.sum(pairs, 1)
    of_warp = tl.reshape(_widened(tl.sum(pairs, 2)[:, None, :] >> place), (TURNS * WARPS,))
    in_front = tl.reshape(tl.cumsum(of_warp, 0) - of_warp, (TURNS // PAIR, PAIR, WARPS))
    within = _widened((tl.cumsum(pairs, 2) - pairs)[:, None, :, :] >> place[:, :, :, None])
    return tl.reshape(within + in_front[:, :, :, None], (codes.shape[0],))


@triton.jit
def _widened(counts):
    """Counts in bits 0 and 8 -> in bits 0 and 16."""
    return (counts & 0xFF) | ((counts & 0xFF00) << 8)


@triton.jit
def _store_items(line, at, words, i, low_kept, high_kept):
    tl.store(line + at, (2 * i << 16) | (words & 0xFFFF), mask=low_kept)
    at += low_kept.to(tl.int32)
    tl.store(line + at, ((2 * i + 1) << 16) | ((words >> 16) & 0xFFFF), mask=high_kept)


@triton.jit
def list_limited(line, words, i, limit, last_index, THREADS: tl.constexpr):
    """Items of what the pair keeps to line [n] int32 -> their count. words: [BLOCK / 2], at i of `word_indices`."""
    low, high = words & 0x7FFF, (words >> 16) & 0x7FFF
    low_kept = stays(low, 2 * i, limit, last_index) & (low > 0)
    high_kept = stays(high, 2 * i + 1, limit, last_index) & (high > 0)
    codes = low_kept.to(tl.int32) + high_kept.to(tl.int32)
    _store_items(line, count_before(codes, THREADS), words, i, low_kept, high_kept)
    return tl.sum(codes, 0)


@triton.jit
def list_largest(line, words, i, limit, above, room, INFINITY: tl.constexpr, THREADS: tl.constexpr):
    """The same of the `above` entries larger than the limit and the first `room` equal to it, unless they are zeros."""
    room = tl.where(limit > 0, room, 0)
    low, high = words & 0x7FFF, (words >> 16) & 0x7FFF
    if limit >= INFINITY:  # the search does not count what is no number, which stays
        above = tl.sum((low > limit).to(tl.int32) + (high > limit).to(tl.int32), 0)
        room = tl.minimum(room, tl.sum((low == limit).to(tl.int32) + (high == limit).to(tl.int32), 0))
    low_tie, high_tie = (low == limit).to(tl.int32), (high == limit).to(tl.int32)
    codes = (low > limit).to(tl.int32) + (high > limit).to(tl.int32) + ((low_tie + high_tie) << 8)
    before = count_before(codes, THREADS)
    ties = before >> 16
    low_kept = (low > limit) | ((low == limit) & (ties < room))
    high_kept = (high > limit) | ((high == limit) & (ties + low_tie < room))
    _store_items(line, (before & 0xFFFF) + tl.minimum(ties, room), words, i, low_kept, high_kept)
    return above + room
