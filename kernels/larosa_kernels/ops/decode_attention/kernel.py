"""Decode attention split along the cache (flash-decoding), with the rotary embedding and the append inside.

Grid (KV heads, splits, B). A program takes all query heads of one KV head over its stretch of the positions before the
new one. The split that holds `position` rotates and appends the new key, writes the new value, and takes both from its
registers: no program waits for that write. Partial sums are combined by the last program to arrive, in fixed order.

The first tile of the cache is asked for before anything else, a later one as soon as the registers of the one before
are free. Exponentials are of base 2, so `scale` holds log2(e).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from larosa_kernels.common.packed_half import pack
from larosa_kernels.common.topk_search import round_to
from larosa_kernels.ops.decode_attention.lines import finish, leave_lines
from larosa_kernels.ops.decode_attention.rotary import angle_of, halves, heads_of, rotate

LOWEST = tl.constexpr(-1e30)  # the maximum of no scores: finite, for its difference to itself is taken


@triton.jit
def _stretch(position, SPLITS: tl.constexpr):
    """(the new position, this split's first one, how many of its positions are older, whether the new one is its)."""
    at = tl.load(position).to(tl.int32)
    stretch = tl.cdiv(at + 1, SPLITS)
    start = tl.program_id(1) * stretch
    return at, start, tl.minimum(stretch, at - start), (start <= at) & (at < start + stretch)


@triton.jit
def _sum_slots(
    k_at, v_at, left, k, v, q_even, q_odd, high, total, even, odd, t, cell,
    dtype: tl.constexpr, STEPS: tl.constexpr, SLOTS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Softmax sums of each slot over its own positions, so that the loop has no exchange between warps."""
    while left > 0:
        k_even, k_odd = halves(tl.reshape(k, (1, STEPS, SLOTS, HALF)), dtype)
        score = tl.sum(q_even * k_even + q_odd * k_odd, 3, keep_dims=True)
        score = tl.where(tl.reshape(t < left, (1, STEPS, SLOTS, 1)), score, float("-inf"))
        left -= STEPS * SLOTS
        k_at += STEPS * SLOTS * HALF
        k = tl.load(k_at + cell, mask=t < left, other=0)
        top = tl.maximum(high, tl.max(score, 1, keep_dims=True))
        p = tl.exp2(score - top)
        shrink = tl.exp2(high - top)
        high = top
        total = total * shrink + tl.sum(p, 1, keep_dims=True)
        v_even, v_odd = halves(tl.reshape(v, (1, STEPS, SLOTS, HALF)), dtype)
        even = even * shrink + tl.sum(p * v_even, 1, keep_dims=True)
        odd = odd * shrink + tl.sum(p * v_odd, 1, keep_dims=True)
        v_at += STEPS * SLOTS * HALF
        v = tl.load(v_at + cell, mask=t < left, other=0)
    return high, total, even, odd


@triton.jit
def _start_slots(
    row, query, key, value, c, s, k_new_at, v_new_at, own, fits, scale,
    PER: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Append the new token where it `fits`; (queries, state of the slots): slot 0 of its `own` split has seen it."""
    HALF: tl.constexpr = WIDTH // 2
    dtype: tl.constexpr = row.dtype.element_ty
    some = tl.arange(0, 2 * GROUP)
    some = tl.where(some < GROUP, query + tl.minimum(some, PER - 1), key)
    both = tl.reshape(rotate(row, c, s, some, WIDTH, INTERPRETED), (2, GROUP, 1, 1, HALF, 2))
    q, k = tl.split(tl.permute(both, (1, 2, 3, 4, 5, 0)))
    q_even, q_odd = tl.split(q * scale)
    k_even, k_odd = tl.split(k)
    slot = tl.arange(0, SLOTS)[:, None]
    cell = slot * 0 + tl.arange(0, HALF)[None, :]
    v = tl.load((row + value * WIDTH).to(tl.pointer_type(tl.int32)) + cell, mask=own & (slot == 0), other=0)
    tl.store(v_new_at + cell, v, mask=fits & (slot == 0))
    copies = tl.broadcast_to(pack(k_even, k_odd, dtype, INTERPRETED), (GROUP, 1, SLOTS, HALF))
    copy = tl.arange(0, GROUP * SLOTS)[:, None]
    cell = copy * 0 + tl.arange(0, HALF)[None, :]
    tl.store(k_new_at + cell, tl.reshape(copies, (GROUP * SLOTS, HALF)), mask=fits & (copy == 0))
    fresh = own & (tl.reshape(slot, (1, 1, SLOTS, 1)) == 0)
    high = tl.where(fresh, tl.sum(q_even * k_even + q_odd * k_odd, 3, keep_dims=True), LOWEST)
    total = tl.broadcast_to(tl.where(fresh, 1.0, 0.0), (GROUP, 1, SLOTS, 1))
    even, odd = halves(tl.reshape(v, (1, 1, SLOTS, HALF)), dtype)
    even = tl.broadcast_to(even, (GROUP, 1, SLOTS, HALF))
    odd = tl.broadcast_to(odd, (GROUP, 1, SLOTS, HALF))
    return q_even, q_odd, high, total, even, odd


@triton.jit
def attend_by_slot(
    qkv, cos, sin, k_cache, v_cache, position, out, mix, maxima, sums, counters, scale, max_len,
    PER: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, STEPS: tl.constexpr,
    WARPS: tl.constexpr, INTERPRETED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Elementwise: a slot is the lanes that hold one row, 16 bytes each, and keeps its own softmax sums.

    Dimensions [GROUP, STEPS, SLOTS, WIDTH / 2 words]: PER query heads, padded by the last. A warp's slots meet at the
    end; each warp leaves one line for the combination.
    """
    LANES: tl.constexpr = max(256 // WIDTH, 1)
    SLOTS: tl.constexpr = WARPS * LANES
    HALF: tl.constexpr = WIDTH // 2
    dtype: tl.constexpr = qkv.dtype.element_ty
    head = tl.program_id(2).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    at, start, left, own = _stretch(position, SPLITS)
    t = tl.arange(0, STEPS * SLOTS)[:, None]
    cell = t.to(tl.int64) * HALF + tl.arange(0, HALF)[None, :]
    k_words = k_cache.to(tl.pointer_type(tl.int32)) + head * max_len * HALF
    v_words = v_cache.to(tl.pointer_type(tl.int32)) + head * max_len * HALF
    k_at = k_words + start.to(tl.int64) * HALF
    v_at = v_words + start.to(tl.int64) * HALF
    k = tl.load(k_at + cell, mask=t < left, other=0)
    v = tl.load(v_at + cell, mask=t < left, other=0)
    c, s = angle_of(cos, sin, at, 2 * GROUP, WIDTH, dtype, INTERPRETED)
    if OVERLAP:  # what stands above is older than the launch before
        gdc_launch_dependents()
        gdc_wait()
    row, query, key, value = heads_of(qkv, PER, WIDTH)
    new = at.to(tl.int64) * HALF
    q_even, q_odd, high, total, even, odd = _start_slots(
        row, query, key, value, c, s, k_words + new, v_words + new, own, own & (at < max_len), scale,
        PER, GROUP, WIDTH, SLOTS, INTERPRETED,
    )  # fmt: skip
    high, total, even, odd = _sum_slots(
        k_at, v_at, left, k, v, q_even, q_odd, high, total, even, odd, t, cell, dtype, STEPS, SLOTS, HALF
    )
    leave_lines(mix, maxima, sums, head, high, total, even, odd, GROUP, WIDTH, SPLITS, WARPS, LANES)
    finish(mix, maxima, sums, counters, out, head, PER, GROUP, WIDTH, SPLITS, SPLITS * WARPS, INTERPRETED)


@triton.jit
def _start_tiles(
    row, query, key, value, c, s, k_new_at, v_new_at, own, fits, scale,
    PER: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Append the new token where it `fits`; (queries [COLUMNS, WIDTH], softmax sums): its `own` split has seen it."""
    dim = tl.arange(0, WIDTH)
    column = tl.arange(0, COLUMNS)
    q = rotate(row, c, s, query + tl.minimum(column, PER - 1), WIDTH, INTERPRETED)
    k = rotate(row, c, s, key + column * 0, WIDTH, INTERPRETED)
    v = tl.load(row + value * WIDTH + dim)
    copies = column[:, None] * 0 + dim[None, :]
    tl.store(k_new_at + copies, round_to(k, row.dtype.element_ty, INTERPRETED), mask=fits & (column == 0)[:, None])
    tl.store(v_new_at + dim, v, mask=fits & (dim >= 0))
    high = tl.where(own, tl.sum(q * k, 1) * scale, LOWEST)
    total = tl.where(own & (tl.arange(0, TILE) == 0), 1.0, 0.0)[:, None]
    mixed = tl.where(own, v.to(tl.float32), 0.0)[:, None]
    return q, high, tl.broadcast_to(total, (TILE, COLUMNS)), tl.broadcast_to(mixed, (WIDTH, COLUMNS))


@triton.jit
def attend_by_tile(
    qkv, cos, sin, k_cache, v_cache, position, out, mix, maxima, sums, counters, scale, max_len,
    PER: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr,
    INTERPRETED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """On tensor cores, TILE positions at a time by 8 or more queries, padded by the last: scores [TILE, COLUMNS]."""
    COLUMNS: tl.constexpr = max(GROUP, 8)
    half: tl.constexpr = qkv.dtype.element_ty
    dtype: tl.constexpr = tl.float32 if INTERPRETED else half  # the interpreter's bf16 dot is wrong in silence
    head = tl.program_id(2).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    at, start, left, own = _stretch(position, SPLITS)
    t = tl.arange(0, TILE)[:, None]
    dim = tl.arange(0, WIDTH)
    cell = t.to(tl.int64) * WIDTH + dim[None, :]
    k_at = k_cache + (head * max_len + start) * WIDTH
    v_at = v_cache + (head * max_len + start) * WIDTH
    k = tl.load(k_at + cell, mask=t < left, other=0.0)
    v = tl.load(v_at + cell, mask=t < left, other=0.0)
    c, s = angle_of(cos, sin, at, COLUMNS, WIDTH, half, INTERPRETED)

    if OVERLAP:  # what stands above is older than the launch before
        gdc_launch_dependents()
        gdc_wait()
    row, query, key, value = heads_of(qkv, PER, WIDTH)
    new = (head * max_len + at) * WIDTH
    q, high, total, mixed = _start_tiles(
        row, query, key, value, c, s, k_cache + new, v_cache + new, own, own & (at < max_len), scale,
        PER, COLUMNS, WIDTH, TILE, INTERPRETED,
    )  # fmt: skip
    q = tl.trans(q.to(dtype))
    while left > 0:
        score = tl.where(t < left, tl.dot(k.to(dtype), q) * scale, float("-inf"))
        left -= TILE
        k_at += TILE * WIDTH
        k = tl.load(k_at + cell, mask=t < left, other=0.0)
        top = tl.maximum(high, tl.max(score, 0))
        p = tl.exp2(score - top[None, :])
        shrink = tl.exp2(high - top)[None, :]
        high = top
        total = total * shrink + p
        mixed = tl.dot(tl.trans(v.to(dtype)), p.to(dtype), mixed * shrink)
        v_at += TILE * WIDTH
        v = tl.load(v_at + cell, mask=t < left, other=0.0)

    column = tl.arange(0, COLUMNS)
    line = (head * GROUP + column) * SPLITS + tl.program_id(1)
    tl.store(maxima + line, high, mask=column < GROUP)
    tl.store(sums + line, tl.sum(total, 0), mask=column < GROUP)
    place = dim % 2 * (WIDTH // 2) + dim // 2
    tl.store(mix + line[None, :] * WIDTH + place[:, None], mixed, mask=(column < GROUP)[None, :])
    finish(mix, maxima, sums, counters, out, head, PER, GROUP, WIDTH, SPLITS, SPLITS, INTERPRETED)
