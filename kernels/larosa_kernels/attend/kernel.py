"""Decode attention split along the cache (flash-decoding), with the rotary embedding and the append inside.

Grid (KV heads, splits, B). A program takes all query heads of one KV head over its stretch of the positions before the
new one. The split that holds `position` rotates and appends the new key, writes the new value, and takes both from its
registers: no program waits for that write. Partial sums are combined by the last program to arrive, in fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.search import round_to


@triton.jit
def rotate(x, cos, sin, head, WIDTH: tl.constexpr, INTERPRETED: tl.constexpr):
    """[rows, WIDTH] fp32 of heads `head` [rows] at x, rotated; rounded after each step, as torch does in x's dtype."""
    dim = tl.arange(0, WIDTH)
    dtype: tl.constexpr = x.dtype.element_ty
    other = (dim + WIDTH // 2) % WIDTH
    sign = tl.where(dim < WIDTH // 2, -1.0, 1.0)
    c = round_to(tl.load(cos + dim).to(tl.float32), dtype, INTERPRETED).to(tl.float32)
    s = round_to(tl.load(sin + dim).to(tl.float32), dtype, INTERPRETED).to(tl.float32)
    plain = tl.load(x + head[:, None] * WIDTH + dim[None, :]).to(tl.float32)
    turned = tl.load(x + head[:, None] * WIDTH + other[None, :]).to(tl.float32) * sign[None, :]
    first = round_to(plain * c[None, :], dtype, INTERPRETED).to(tl.float32)
    second = round_to(turned * s[None, :], dtype, INTERPRETED).to(tl.float32)
    return round_to(first + second, dtype, INTERPRETED).to(tl.float32)


@triton.jit
def scores_of(q, k, DOT: tl.constexpr, dtype: tl.constexpr):
    """q: [G, WIDTH], k: [T, WIDTH] fp32 -> [G, T]."""
    if DOT:
        return tl.dot(q.to(dtype), tl.trans(k.to(dtype)))
    return tl.sum(q[:, None, :] * k[None, :, :], 2)


@triton.jit
def mix_of(p, v, DOT: tl.constexpr, dtype: tl.constexpr):
    """p: [G, T], v: [T, WIDTH] fp32 -> [G, WIDTH]."""
    if DOT:
        return tl.dot(p.to(dtype), v.to(dtype))
    return tl.sum(p[:, :, None] * v[None, :, :], 1)


@triton.jit
def _combine(
    mix, maxima, sums, out,
    PER: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """out: [PER, WIDTH]: the splits' softmax sums on one scale, added in the order of the splits."""
    group = tl.arange(0, GROUP)
    dim = tl.arange(0, WIDTH)
    line = tl.arange(0, SPLITS)[:, None] * GROUP + group[None, :]
    highs = tl.load(maxima + line, cache_modifier=".cg")
    top = tl.max(highs, 0)
    total = tl.sum(tl.exp(highs - top[None, :]) * tl.load(sums + line, cache_modifier=".cg"), 0)
    mixed = tl.zeros([GROUP, WIDTH], dtype=tl.float32)
    cell = group[:, None] * WIDTH + dim[None, :]
    real = (group < PER)[:, None] & (dim >= 0)[None, :]
    for split in tl.static_range(SPLITS):
        share = tl.exp(tl.load(maxima + split * GROUP + group, cache_modifier=".cg") - top)
        part = tl.load(mix + split * GROUP * WIDTH + cell, mask=real, other=0.0, cache_modifier=".cg")
        mixed += share[:, None] * part
    tl.store(out + cell, round_to(mixed / total[:, None], out.dtype.element_ty, INTERPRETED), mask=real)


@triton.jit
def attend_kernel(
    qkv, cos, sin, k_cache, v_cache, position, out, mix, maxima, sums, counters, scale, max_len,
    PER: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, TILE: tl.constexpr,
    STAGES: tl.constexpr, DOT: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """PER query heads a KV head, padded to GROUP by repeating the last. Shapes in functional.py."""
    kv = tl.program_id(0)
    split = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    kv_heads = tl.num_programs(0)
    dtype: tl.constexpr = tl.float32 if INTERPRETED else qkv.dtype.element_ty  # its bf16 dot is wrong in silence
    at = tl.load(position).to(tl.int32)
    dim = tl.arange(0, WIDTH)
    group = tl.arange(0, GROUP)
    one = tl.arange(0, 1)
    row = qkv + batch * kv_heads * (PER + 2) * WIDTH
    cos_at = cos + at.to(tl.int64) * WIDTH
    sin_at = sin + at.to(tl.int64) * WIDTH
    q = rotate(row, cos_at, sin_at, kv * PER + tl.minimum(group, PER - 1), WIDTH, INTERPRETED)

    stretch = tl.cdiv(tl.cdiv(at + 1, SPLITS), TILE) * TILE
    start = split * stretch
    end = tl.minimum(start + stretch, at)
    head_cache = (batch * kv_heads + kv) * max_len * WIDTH
    high = tl.full([GROUP], float("-inf"), dtype=tl.float32)
    total = tl.zeros([GROUP], dtype=tl.float32)
    mixed = tl.zeros([GROUP, WIDTH], dtype=tl.float32)
    for first in tl.range(start, end, TILE, num_stages=STAGES):
        t = first + tl.arange(0, TILE)
        seen = t < end
        cell = head_cache + t[:, None].to(tl.int64) * WIDTH + dim[None, :]
        k = tl.load(k_cache + cell, mask=seen[:, None], other=0.0).to(tl.float32)
        v = tl.load(v_cache + cell, mask=seen[:, None], other=0.0).to(tl.float32)
        score = tl.where(seen[None, :], scores_of(q, k, DOT, dtype) * scale, float("-inf"))
        new_high = tl.maximum(high, tl.max(score, 1))
        p = tl.exp(score - new_high[:, None])
        shrink = tl.exp(high - new_high)
        total = total * shrink + tl.sum(p, 1)
        mixed = mixed * shrink[:, None] + mix_of(p, v, DOT, dtype)
        high = new_high

    if (at >= start) & (at < start + stretch):
        k_new = rotate(row, cos_at, sin_at, kv_heads * PER + kv + one, WIDTH, INTERPRETED)
        v_new = tl.load(row + (kv_heads * (PER + 1) + kv + one)[:, None] * WIDTH + dim[None, :])
        cell = head_cache + (at + one).to(tl.int64)[:, None] * WIDTH + dim[None, :]
        fits = (at + one < max_len)[:, None] & (dim >= 0)[None, :]
        tl.store(k_cache + cell, round_to(k_new, k_cache.dtype.element_ty, INTERPRETED), mask=fits)
        tl.store(v_cache + cell, v_new, mask=fits)
        score = tl.sum(q * k_new, 1) * scale
        new_high = tl.maximum(high, score)
        p = tl.exp(score - new_high)
        shrink = tl.exp(high - new_high)
        total = total * shrink + p
        mixed = mixed * shrink[:, None] + p[:, None] * v_new.to(tl.float32)
        high = new_high

    line = (batch * kv_heads + kv) * SPLITS
    tl.store(maxima + (line + split) * GROUP + group, high)
    tl.store(sums + (line + split) * GROUP + group, total)
    tl.store(mix + (line + split) * GROUP * WIDTH + group[:, None] * WIDTH + dim[None, :], mixed)
    tl.debug_barrier()  # every thread's partials come before the release below
    counter = counters + batch * kv_heads + kv
    if tl.atomic_add(counter, 1, sem="acq_rel") == SPLITS - 1:
        _combine(
            mix + line * GROUP * WIDTH, maxima + line * GROUP, sums + line * GROUP,
            out + (batch * kv_heads + kv) * PER * WIDTH, PER, GROUP, WIDTH, SPLITS, INTERPRETED,
        )  # fmt: skip
        tl.store(counter, 0)  # ready for the next launch, a graph's replay included
