"""Decode attention split along the cache (flash-decoding), with rotary embedding and append inside; see README.md.

Grid (KV heads, splits, B). Exponentials are of base 2, so `scale` holds log2(e).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from larosa_kernels.common.packed_half import high_half, low_half, pack
from larosa_kernels.common.topk_search import round_to
from larosa_kernels.ops.decode_attention.lines import finish, leave_lines
from larosa_kernels.ops.decode_attention.rotary import angle_of, heads_of, rotate

LOWEST = tl.constexpr(-1e30)  # the maximum of no scores: finite, for its difference to itself is taken


@triton.jit
def _stretch(position, SPLITS: tl.constexpr):
    """(the new position, this split's first one, how many older positions it has, whether it has the new one)."""
    i_position = tl.load(position).to(tl.int32)
    stretch = tl.cdiv(i_position + 1, SPLITS)
    i_start = tl.program_id(1) * stretch
    return (
        i_position,
        i_start,
        tl.minimum(stretch, i_position - i_start),
        (i_start <= i_position) & (i_position < i_start + stretch),
    )


@triton.jit
def _sum_slots(
    p_k, p_v, remaining, b_k, b_v, q_even, q_odd, maximum, total, even, odd, o_t, o_tile,
    dtype: tl.constexpr, STEPS: tl.constexpr, SLOTS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Softmax sums of each slot over its own positions, so that the loop has no exchange between warps."""
    while remaining > 0:
        k_even = low_half(tl.reshape(b_k, (1, STEPS, SLOTS, HALF)), dtype)
        k_odd = high_half(tl.reshape(b_k, (1, STEPS, SLOTS, HALF)), dtype)
        score = tl.sum(q_even * k_even + q_odd * k_odd, 3, keep_dims=True)
        score = tl.where(tl.reshape(o_t < remaining, (1, STEPS, SLOTS, 1)), score, float("-inf"))
        remaining -= STEPS * SLOTS
        p_k += STEPS * SLOTS * HALF
        b_k = tl.load(p_k + o_tile, mask=o_t < remaining, other=0)
        top = tl.maximum(maximum, tl.max(score, 1, keep_dims=True))
        p = tl.exp2(score - top)
        shrink = tl.exp2(maximum - top)
        maximum = top
        total = total * shrink + tl.sum(p, 1, keep_dims=True)
        v_even = low_half(tl.reshape(b_v, (1, STEPS, SLOTS, HALF)), dtype)
        v_odd = high_half(tl.reshape(b_v, (1, STEPS, SLOTS, HALF)), dtype)
        even = even * shrink + tl.sum(p * v_even, 1, keep_dims=True)
        odd = odd * shrink + tl.sum(p * v_odd, 1, keep_dims=True)
        p_v += STEPS * SLOTS * HALF
        b_v = tl.load(p_v + o_tile, mask=o_t < remaining, other=0)
    return maximum, total, even, odd


@triton.jit
def _start_slots(
    p_row, i_query, i_key, i_value, b_cos, b_sin, norms, eps, p_k_new, p_v_new, has_new, m_append, scale,
    PER_KV: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SLOTS: tl.constexpr, NORMED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Append the new token by m_append; (queries, softmax sums of the slots): with has_new slot 0 has seen it."""
    HALF: tl.constexpr = WIDTH // 2
    dtype: tl.constexpr = p_row.dtype.element_ty
    o_row = tl.arange(0, 2 * GROUP)
    o_head = tl.where(o_row < GROUP, i_query + tl.minimum(o_row, PER_KV - 1), i_key)
    both = rotate(p_row, b_cos, b_sin, o_head, norms, o_row // GROUP, eps, WIDTH, NORMED, INTERPRETED)
    both = tl.reshape(both, (2, GROUP, 1, 1, HALF, 2))
    b_q, b_k = tl.split(tl.permute(both, (1, 2, 3, 4, 5, 0)))
    q_even, q_odd = tl.split(b_q * scale)
    k_even, k_odd = tl.split(b_k)
    o_slot = tl.arange(0, SLOTS)[:, None]
    o_tile = o_slot * 0 + tl.arange(0, HALF)[None, :]
    b_v = tl.load(
        (p_row + i_value * WIDTH).to(tl.pointer_type(tl.int32)) + o_tile, mask=has_new & (o_slot == 0), other=0
    )
    tl.store(p_v_new + o_tile, b_v, mask=m_append & (o_slot == 0))
    copies = tl.broadcast_to(pack(k_even, k_odd, dtype, INTERPRETED), (GROUP, 1, SLOTS, HALF))
    o_copy = tl.arange(0, GROUP * SLOTS)[:, None]
    o_tile = o_copy * 0 + tl.arange(0, HALF)[None, :]
    tl.store(p_k_new + o_tile, tl.reshape(copies, (GROUP * SLOTS, HALF)), mask=m_append & (o_copy == 0))
    fresh = has_new & (tl.reshape(o_slot, (1, 1, SLOTS, 1)) == 0)
    maximum = tl.where(fresh, tl.sum(q_even * k_even + q_odd * k_odd, 3, keep_dims=True), LOWEST)
    total = tl.broadcast_to(tl.where(fresh, 1.0, 0.0), (GROUP, 1, SLOTS, 1))
    even = low_half(tl.reshape(b_v, (1, 1, SLOTS, HALF)), dtype)
    odd = high_half(tl.reshape(b_v, (1, 1, SLOTS, HALF)), dtype)
    even = tl.broadcast_to(even, (GROUP, 1, SLOTS, HALF))
    odd = tl.broadcast_to(odd, (GROUP, 1, SLOTS, HALF))
    return q_even, q_odd, maximum, total, even, odd


@triton.jit
def decode_attention_slots_kernel(
    qkv, cos, sin, norms, k_cache, v_cache, position, out, mix, maxima, sums, counters, scale, eps, max_len,
    PER_KV: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, STEPS: tl.constexpr,
    WARPS: tl.constexpr, NORMED: tl.constexpr, INTERPRETED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Elementwise: a slot is the lanes that hold one row, 16 bytes each, and keeps its own softmax sums.

    Dimensions [GROUP, STEPS, SLOTS, WIDTH / 2 words]: PER_KV query heads, padded by the last. A warp's slots are added
    at the end; each warp leaves one line for the combination.
    """
    LANES: tl.constexpr = max(256 // WIDTH, 1)
    SLOTS: tl.constexpr = WARPS * LANES
    HALF: tl.constexpr = WIDTH // 2
    dtype: tl.constexpr = qkv.dtype.element_ty
    i_head = tl.program_id(2).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    i_position, i_start, remaining, has_new = _stretch(position, SPLITS)
    o_t = tl.arange(0, STEPS * SLOTS)[:, None]
    o_tile = o_t.to(tl.int64) * HALF + tl.arange(0, HALF)[None, :]
    p_k_cache = k_cache.to(tl.pointer_type(tl.int32)) + i_head * max_len * HALF
    p_v_cache = v_cache.to(tl.pointer_type(tl.int32)) + i_head * max_len * HALF
    p_k = p_k_cache + i_start.to(tl.int64) * HALF
    p_v = p_v_cache + i_start.to(tl.int64) * HALF
    b_k = tl.load(p_k + o_tile, mask=o_t < remaining, other=0)
    b_v = tl.load(p_v + o_tile, mask=o_t < remaining, other=0)
    b_cos, b_sin = angle_of(cos, sin, i_position, 2 * GROUP, WIDTH, dtype, INTERPRETED)
    if OVERLAP:  # what stands above is older than the launch before
        gdc_launch_dependents()
        gdc_wait()
    p_row, i_query, i_key, i_value = heads_of(qkv, PER_KV, WIDTH)
    o_new = i_position.to(tl.int64) * HALF
    q_even, q_odd, maximum, total, even, odd = _start_slots(
        p_row, i_query, i_key, i_value, b_cos, b_sin, norms, eps, p_k_cache + o_new, p_v_cache + o_new, has_new,
        has_new & (i_position < max_len), scale,
        PER_KV, GROUP, WIDTH, SLOTS, NORMED, INTERPRETED,
    )  # fmt: skip
    maximum, total, even, odd = _sum_slots(
        p_k, p_v, remaining, b_k, b_v, q_even, q_odd, maximum, total, even, odd, o_t, o_tile, dtype, STEPS, SLOTS, HALF
    )
    leave_lines(mix, maxima, sums, i_head, maximum, total, even, odd, GROUP, WIDTH, SPLITS, WARPS, LANES)
    finish(mix, maxima, sums, counters, out, i_head, PER_KV, GROUP, WIDTH, SPLITS, SPLITS * WARPS, INTERPRETED)


@triton.jit
def _start_tiles(
    p_row, i_query, i_key, i_value, b_cos, b_sin, norms, eps, p_k_new, p_v_new, has_new, m_append, scale,
    PER_KV: tl.constexpr, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, NORMED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Append the new token by m_append; (queries [COLUMNS, WIDTH], softmax sums): with has_new they have seen it."""
    o_dim = tl.arange(0, WIDTH)
    o_column = tl.arange(0, COLUMNS)
    o_query, o_key = i_query + tl.minimum(o_column, PER_KV - 1), i_key + o_column * 0
    b_q = rotate(p_row, b_cos, b_sin, o_query, norms, o_column * 0, eps, WIDTH, NORMED, INTERPRETED)
    b_k = rotate(p_row, b_cos, b_sin, o_key, norms, o_column * 0 + 1, eps, WIDTH, NORMED, INTERPRETED)
    b_v = tl.load(p_row + i_value * WIDTH + o_dim)
    copies = o_column[:, None] * 0 + o_dim[None, :]
    tl.store(
        p_k_new + copies, round_to(b_k, p_row.dtype.element_ty, INTERPRETED), mask=m_append & (o_column == 0)[:, None]
    )
    tl.store(p_v_new + o_dim, b_v, mask=m_append & (o_dim >= 0))
    maximum = tl.where(has_new, tl.sum(b_q * b_k, 1) * scale, LOWEST)
    total = tl.where(has_new & (tl.arange(0, TILE) == 0), 1.0, 0.0)[:, None]
    mixed = tl.where(has_new, b_v.to(tl.float32), 0.0)[:, None]
    return b_q, maximum, tl.broadcast_to(total, (TILE, COLUMNS)), tl.broadcast_to(mixed, (WIDTH, COLUMNS))


@triton.jit
def decode_attention_tiles_kernel(
    qkv, cos, sin, norms, k_cache, v_cache, position, out, mix, maxima, sums, counters, scale, eps, max_len,
    PER_KV: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr,
    NORMED: tl.constexpr, INTERPRETED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """On tensor cores, TILE positions at a time by 8 or more queries, padded by the last: scores [TILE, COLUMNS]."""
    COLUMNS: tl.constexpr = max(GROUP, 8)
    half: tl.constexpr = qkv.dtype.element_ty
    dtype: tl.constexpr = tl.float32 if INTERPRETED else half  # the interpreter'b_sin bf16 dot is wrong in silence
    i_head = tl.program_id(2).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    i_position, i_start, remaining, has_new = _stretch(position, SPLITS)
    o_t = tl.arange(0, TILE)[:, None]
    o_dim = tl.arange(0, WIDTH)
    o_tile = o_t.to(tl.int64) * WIDTH + o_dim[None, :]
    p_k = k_cache + (i_head * max_len + i_start) * WIDTH
    p_v = v_cache + (i_head * max_len + i_start) * WIDTH
    b_k = tl.load(p_k + o_tile, mask=o_t < remaining, other=0.0)
    b_v = tl.load(p_v + o_tile, mask=o_t < remaining, other=0.0)
    b_cos, b_sin = angle_of(cos, sin, i_position, COLUMNS, WIDTH, half, INTERPRETED)

    if OVERLAP:  # what stands above is older than the launch before
        gdc_launch_dependents()
        gdc_wait()
    p_row, i_query, i_key, i_value = heads_of(qkv, PER_KV, WIDTH)
    o_new = (i_head * max_len + i_position) * WIDTH
    b_q, maximum, total, mixed = _start_tiles(
        p_row, i_query, i_key, i_value, b_cos, b_sin, norms, eps, k_cache + o_new, v_cache + o_new, has_new,
        has_new & (i_position < max_len), scale,
        PER_KV, COLUMNS, WIDTH, TILE, NORMED, INTERPRETED,
    )  # fmt: skip
    b_q = tl.trans(b_q.to(dtype))
    while remaining > 0:
        score = tl.where(o_t < remaining, tl.dot(b_k.to(dtype), b_q) * scale, float("-inf"))
        remaining -= TILE
        p_k += TILE * WIDTH
        b_k = tl.load(p_k + o_tile, mask=o_t < remaining, other=0.0)
        top = tl.maximum(maximum, tl.max(score, 0))
        p = tl.exp2(score - top[None, :])
        shrink = tl.exp2(maximum - top)[None, :]
        maximum = top
        total = total * shrink + p
        mixed = tl.dot(tl.trans(b_v.to(dtype)), p.to(dtype), mixed * shrink)
        p_v += TILE * WIDTH
        b_v = tl.load(p_v + o_tile, mask=o_t < remaining, other=0.0)

    o_column = tl.arange(0, COLUMNS)
    o_line = (i_head * GROUP + o_column) * SPLITS + tl.program_id(1)
    tl.store(maxima + o_line, maximum, mask=o_column < GROUP)
    tl.store(sums + o_line, tl.sum(total, 0), mask=o_column < GROUP)
    o_place = o_dim % 2 * (WIDTH // 2) + o_dim // 2
    tl.store(mix + o_line[None, :] * WIDTH + o_place[:, None], mixed, mask=(o_column < GROUP)[None, :])
    finish(mix, maxima, sums, counters, out, i_head, PER_KV, GROUP, WIDTH, SPLITS, SPLITS, INTERPRETED)
