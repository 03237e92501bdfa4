"""Decode attention split along the cache (flash-decoding), with the rotary embedding and the append inside.

Grid (KV heads, splits, B). A program takes all query heads of one KV head over its stretch of the positions before the
new one. The split that holds `position` rotates and appends the new key, writes the new value, and takes both from its
registers: no program waits for that write. Partial sums are combined by the last program to arrive, in fixed order.

The first tile of the cache is asked for before the wait on the previous kernel, which writes only qkv: a later tile is
asked for as soon as the registers of the one before are free. Exponentials are of base 2, scale holds log2(e).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from larosa_kernels.search import round_to

LOWEST = tl.constexpr(-1e30)  # the maximum of no scores: finite, for its difference to itself is taken


@triton.jit
def rounded(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """fp32 x rounded to `dtype` and back, in a way that the compiler cannot drop: it fuses half products and sums."""
    if INTERPRETED:
        return round_to(x, dtype, True).to(tl.float32)
    elif dtype == tl.bfloat16:
        asm: tl.constexpr = "cvt.rn.bf16x2.f32 $0, $1, 0f00000000;"  # bf16 above a zero half is fp32
        bits = tl.inline_asm_elementwise(asm, "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1)
        return bits.to(tl.float32, bitcast=True)
    else:
        asm: tl.constexpr = "{ .reg .b16 h; cvt.rn.f16.f32 h, $1; cvt.f32.f16 $0, h; }"
        return tl.inline_asm_elementwise(asm, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def angle_of(cos, sin, at, ROWS: tl.constexpr, WIDTH: tl.constexpr, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """(cos, signed sin) at position `at`: [ROWS, WIDTH] fp32, equal rows, rounded to `dtype`."""
    dim = tl.arange(0, WIDTH)
    cell = at.to(tl.int64) * WIDTH + tl.arange(0, ROWS)[:, None] * 0 + dim[None, :]
    c = round_to(tl.load(cos + cell).to(tl.float32), dtype, INTERPRETED).to(tl.float32)
    s = round_to(tl.load(sin + cell).to(tl.float32), dtype, INTERPRETED).to(tl.float32)
    return c, tl.where(dim[None, :] < WIDTH // 2, -s, s)  # the lower half takes the negated upper one


@triton.jit
def rotate(x, c, s, head, WIDTH: tl.constexpr, INTERPRETED: tl.constexpr):
    """[rows, WIDTH] fp32 of heads `head` [rows] at x, rotated; rounded after each step, as torch does in x's dtype."""
    dim = tl.arange(0, WIDTH)
    dtype: tl.constexpr = x.dtype.element_ty
    other = (dim + WIDTH // 2) % WIDTH
    plain = tl.load(x + head[:, None] * WIDTH + dim[None, :]).to(tl.float32)
    turned = tl.load(x + head[:, None] * WIDTH + other[None, :]).to(tl.float32)
    first = rounded(plain * c, dtype, INTERPRETED)
    return rounded(first + rounded(turned * s, dtype, INTERPRETED), dtype, INTERPRETED)


@triton.jit
def halves(pairs, dtype: tl.constexpr):
    """(even, odd) entries in fp32 of int32 words that hold two each."""
    if dtype == tl.bfloat16:
        return (pairs << 16).to(tl.float32, bitcast=True), (pairs & -65536).to(tl.float32, bitcast=True)
    else:
        even = pairs.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
        return even, (pairs >> 16).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def words(even, odd, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """int32 words of two entries each, from two fp32 halves that `dtype` holds exactly."""
    low = round_to(even, dtype, INTERPRETED).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low | (round_to(odd, dtype, INTERPRETED).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def _stretch(position, SPLITS: tl.constexpr):
    """(the new position, this split's first one, how many of its positions are older, whether the new one is its)."""
    at = tl.load(position).to(tl.int32)
    stretch = tl.cdiv(at + 1, SPLITS)
    start = tl.program_id(1) * stretch
    return at, start, tl.minimum(stretch, at - start), (start <= at) & (at < start + stretch)


@triton.jit
def _heads(qkv, PER: tl.constexpr, WIDTH: tl.constexpr, PDL: tl.constexpr):
    """(pointer to this batch row's heads, numbers of this program's first query, its key, its value); waits for qkv."""
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    kv_heads = tl.num_programs(0)
    kv = tl.program_id(0)
    row = qkv + tl.program_id(2).to(tl.int64) * kv_heads * (PER + 2) * WIDTH
    return row, kv * PER, kv_heads * PER + kv, kv_heads * (PER + 1) + kv


@triton.jit
def _scale_of(maxima, sums, LINES: tl.constexpr):
    """(maximum, sum) of one head's LINES partial sums, found by every warp for itself."""
    SOME: tl.constexpr = min(LINES, 32)
    some = tl.arange(0, SOME)
    high = tl.load(maxima + some, cache_modifier=".cg")
    total = tl.load(sums + some, cache_modifier=".cg")
    for more in tl.static_range(SOME, LINES, SOME):
        next_high = tl.load(maxima + more + some, cache_modifier=".cg")
        next_total = tl.load(sums + more + some, cache_modifier=".cg")
        top = tl.maximum(high, next_high)
        total = total * tl.exp2(high - top) + next_total * tl.exp2(next_high - top)
        high = top
    top = tl.max(high, 0)
    return top, tl.sum(total * tl.exp2(high - top), 0)


@triton.jit
def _combine(
    mix, maxima, sums, out,
    PER: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, LINES: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """out: [PER, WIDTH] from LINES partial sums a head, brought to one scale. Even entries of mix come first."""
    group = tl.arange(0, GROUP)
    dim = tl.arange(0, WIDTH)
    line = (group[None, :] * LINES + tl.arange(0, LINES)[:, None])[:, :, None]
    parts = tl.load(mix + line * WIDTH + dim[None, None, :], cache_modifier=".cg")
    high = tl.load(maxima + line, cache_modifier=".cg")
    if GROUP == 1:
        top, total = _scale_of(maxima, sums, LINES)
        mixed = tl.sum(parts * tl.exp2(high - top), 0) / total
    else:
        share = tl.exp2(high - tl.max(high, 0)[None, :, :])
        mixed = tl.sum(parts * share, 0) / tl.sum(tl.load(sums + line, cache_modifier=".cg") * share, 0)
    cell = group[:, None] * WIDTH + (dim % (WIDTH // 2) * 2 + dim // (WIDTH // 2))[None, :]
    tl.store(out + cell, round_to(mixed, out.dtype.element_ty, INTERPRETED), mask=(group < PER)[:, None])


@triton.jit
def _finish(
    mix, maxima, sums, counters, out, head,
    PER: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, LINES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Announce this program's partial sums; the last of a head's programs combines them."""
    tl.debug_barrier()  # every thread's partials come before the release below
    if tl.atomic_add(counters + head, 1, sem="acq_rel") == SPLITS - 1:
        line = head * GROUP * LINES
        _combine(
            mix + line * WIDTH, maxima + line, sums + line, out + head * PER * WIDTH,
            PER, GROUP, WIDTH, LINES, INTERPRETED,
        )  # fmt: skip
        tl.store(counters + head, 0)  # ready for the next launch, a graph's replay included


@triton.jit
def _sum_slots(
    k_at, v_at, left, k, v, q_even, q_odd, high, total, even, odd, t, cell,
    dtype: tl.constexpr, TILE: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Softmax sums of each slot over its own positions, so that the loop has no exchange between warps."""
    while left > 0:
        k_even, k_odd = halves(k, dtype)
        score = tl.sum(q_even * k_even + q_odd * k_odd, 4, keep_dims=True)
        score = tl.where(t < left, score, float("-inf"))
        left -= TILE
        k_at += TILE * HALF
        k = tl.load(k_at + cell, mask=t < left, other=0)
        top = tl.maximum(high, tl.max(score, 1, keep_dims=True))
        p = tl.exp2(score - top)
        shrink = tl.exp2(high - top)
        high = top
        total = total * shrink + tl.sum(p, 1, keep_dims=True)
        v_even, v_odd = halves(v, dtype)
        even = even * shrink + tl.sum(p * v_even, 1, keep_dims=True)
        odd = odd * shrink + tl.sum(p * v_odd, 1, keep_dims=True)
        v_at += TILE * HALF
        v = tl.load(v_at + cell, mask=t < left, other=0)
    return high, total, even, odd


@triton.jit
def attend_by_slot(
    qkv, cos, sin, k_cache, v_cache, position, out, mix, maxima, sums, counters, scale, max_len,
    PER: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, STEPS: tl.constexpr,
    WARPS: tl.constexpr, PDL: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Elementwise: a slot is the lanes that hold one row, 16 bytes each, and keeps its own softmax sums.

    Dimensions [GROUP, STEPS, WARPS, SLOTS, WIDTH / 2 words]: PER query heads, padded by the last. A warp's slots meet
    at the end; each warp leaves one line for the combination.
    """
    SLOTS: tl.constexpr = max(256 // WIDTH, 1)
    HALF: tl.constexpr = WIDTH // 2
    dtype: tl.constexpr = qkv.dtype.element_ty
    head = tl.program_id(2).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    at, start, left, own = _stretch(position, SPLITS)
    warp = tl.arange(0, WARPS)[None, None, :, None, None]
    slot = warp * SLOTS + tl.arange(0, SLOTS)[None, None, None, :, None]
    t = tl.arange(0, STEPS)[None, :, None, None, None] * (WARPS * SLOTS) + slot
    word = tl.arange(0, HALF)[None, None, None, None, :]
    cell = t.to(tl.int64) * HALF + word
    k_at = k_cache.to(tl.pointer_type(tl.int32)) + (head * max_len + start) * HALF
    v_at = v_cache.to(tl.pointer_type(tl.int32)) + (head * max_len + start) * HALF
    k = tl.load(k_at + cell, mask=t < left, other=0)
    v = tl.load(v_at + cell, mask=t < left, other=0)
    c, s = angle_of(cos, sin, at, 2 * GROUP, WIDTH, dtype, INTERPRETED)

    row, query, key, value = _heads(qkv, PER, WIDTH, PDL)
    some = tl.arange(0, 2 * GROUP)
    some = tl.where(some < GROUP, query + tl.minimum(some, PER - 1), key)
    both = tl.reshape(rotate(row, c, s, some, WIDTH, INTERPRETED), (2, GROUP, 1, 1, 1, HALF, 2))
    q, k_new = tl.split(tl.permute(both, (1, 2, 3, 4, 5, 6, 0)))
    q_even, q_odd = tl.split(q * scale)
    k_even, k_odd = tl.split(k_new)
    fresh = own & (slot == 0)
    v_new = tl.load((row + value * WIDTH).to(tl.pointer_type(tl.int32)) + slot * 0 + word, mask=fresh, other=0)
    new = (head * max_len + at) * HALF + slot * 0 + word
    fits = fresh & (at < max_len)
    tl.store(v_cache.to(tl.pointer_type(tl.int32)) + new, v_new, mask=fits)
    group = tl.arange(0, GROUP)[:, None, None, None, None]
    k_new_at = k_cache.to(tl.pointer_type(tl.int32)) + new + group * 0
    tl.store(k_new_at, words(k_even, k_odd, dtype, INTERPRETED) + slot * 0, mask=fits & (group == 0))
    even, odd = halves(v_new, dtype)
    high, total, even, odd = _sum_slots(
        k_at, v_at, left, k, v, q_even, q_odd,
        tl.where(fresh, tl.sum(q_even * k_even + q_odd * k_odd, 4, keep_dims=True), LOWEST),
        tl.broadcast_to(tl.where(fresh, 1.0, 0.0), (GROUP, 1, WARPS, SLOTS, 1)),
        tl.broadcast_to(even, (GROUP, 1, WARPS, SLOTS, HALF)), tl.broadcast_to(odd, (GROUP, 1, WARPS, SLOTS, HALF)),
        t, cell, dtype, STEPS * WARPS * SLOTS, HALF,
    )  # fmt: skip

    top = tl.max(high, 3, keep_dims=True)
    share = tl.exp2(high - top)
    lane = tl.arange(0, 32)[None, None, None, None, :]
    line = ((head * GROUP + group) * SPLITS + tl.program_id(1)) * WARPS + warp
    tl.store(maxima + line + lane, top, mask=lane == 0)
    tl.store(sums + line + lane, tl.sum(total * share, 3, keep_dims=True), mask=lane == 0)
    even = tl.sum(even * share, 3, keep_dims=True)
    odd = tl.sum(odd * share, 3, keep_dims=True)
    if SLOTS > 1:  # one slot stores the even entries and one the odd: no thread twice
        half = slot % SLOTS
        tl.store(mix + line * WIDTH + half * HALF + word, tl.where(half == 0, even, odd), mask=half < 2)
    else:
        tl.store(mix + line * WIDTH + word, even)
        tl.store(mix + line * WIDTH + HALF + word, odd)
    _finish(mix, maxima, sums, counters, out, head, PER, GROUP, WIDTH, SPLITS, SPLITS * WARPS, INTERPRETED)


@triton.jit
def attend_by_tile(
    qkv, cos, sin, k_cache, v_cache, position, out, mix, maxima, sums, counters, scale, max_len,
    PER: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr,
    PDL: tl.constexpr, INTERPRETED: tl.constexpr,
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

    row, query, key, value = _heads(qkv, PER, WIDTH, PDL)
    column = tl.arange(0, COLUMNS)
    q = rotate(row, c, s, query + tl.minimum(column, PER - 1), WIDTH, INTERPRETED)
    k_new = rotate(row, c, s, key + column * 0, WIDTH, INTERPRETED)
    v_new = tl.load(row + value * WIDTH + dim)
    new = (head * max_len + at) * WIDTH + dim
    fits = own & (at < max_len) & (dim >= 0)
    tl.store(
        k_cache + new[None, :] + column[:, None] * 0,
        round_to(k_new, half, INTERPRETED),
        mask=fits[None, :] & (column == 0)[:, None],
    )
    tl.store(v_cache + new, v_new, mask=fits)
    high = tl.where(own, tl.sum(q * k_new, 1) * scale, LOWEST)
    total = tl.broadcast_to(tl.where(own & (t == 0), 1.0, 0.0), (TILE, COLUMNS))
    mixed = tl.broadcast_to(tl.where(own, v_new.to(tl.float32), 0.0)[:, None], (WIDTH, COLUMNS))
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

    line = (head * GROUP + column) * SPLITS + tl.program_id(1)
    tl.store(maxima + line, high, mask=column < GROUP)
    tl.store(sums + line, tl.sum(total, 0), mask=column < GROUP)
    place = dim % 2 * (WIDTH // 2) + dim // 2
    tl.store(mix + line[None, :] * WIDTH + place[:, None], mixed, mask=(column < GROUP)[None, :])
    _finish(mix, maxima, sums, counters, out, head, PER, GROUP, WIDTH, SPLITS, SPLITS, INTERPRETED)
