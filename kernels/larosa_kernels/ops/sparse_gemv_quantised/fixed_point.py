"""Fixed-point entries times quantised weights in integers: device functions of the quantised product; see README.md."""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.common.packed_half import low_half

_MAGIC_BITS = tl.constexpr(0x4B400000)
"""Of 1.5 * 2^23 in fp32: v added to it stands in its low bits, as a signed integer."""


@triton.jit
def fixed_point(largest):
    """(2^e, 2^-e) fp32 with largest 2^e < 2^22; the second is NaN where the largest is NaN or infinite."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    up = tl.minimum(275 - exponent, 253)
    from_fixed = ((254 - up) << 23).to(tl.float32, bitcast=True)
    return (up << 23).to(tl.float32, bitcast=True), tl.where(exponent == 255, float("nan"), from_fixed)


@triton.jit
def in_bits(x):
    """The bits of fp32 x, within 2^22, rounded to an integer and added to 1.5 * 2^23, whose last bit is 1."""
    return (x + 12582912.0).to(tl.int32, bitcast=True)


@triton.jit
def accumulate_rows(
    p_entries, weight, scale, n, row_begin, count, stride, half, i_tile, to_fixed,
    PRODUCT: tl.constexpr, INPUTS: tl.constexpr, WARPS: tl.constexpr, SWIGLU: tl.constexpr, INT4: tl.constexpr,
    TWO_EACH: tl.constexpr,
):  # fmt: skip
    """Entries times a tile of 128 bytes of `count` rows, by the PTX of product.py -> int64 sums of its outputs.

    Of gates and ups, [threads] each; else of all outputs, [threads], or with TWO_EACH [2 threads], returned twice.
    p_entries: items, or entries from row_begin on. stride, half: 4-byte words per row, and from an int8 gate to its
    up: with SWIGLU an int8 tile is 64 bytes of gates and 64 of their ups. scale: of 4 bits, [blocks, n, 4].
    """
    o_thread = tl.arange(0, 32 * WARPS)
    o_part = o_thread % 8
    if SWIGLU and not INT4:
        o_byte = i_tile * 64 + o_part % 4 * 16
        reach = tl.where(o_byte < 4 * half, 16, 0)
        o_byte += o_part // 4 * 4 * half
    else:
        o_byte = i_tile * 128 + o_part * 16
        reach = tl.where(o_byte < 4 * stride, 16, 0)
    p_scale = scale.to(tl.int64)
    if INT4:
        p_scale += i_tile.to(tl.int64) * n * 8
    first, second = tl.inline_asm_elementwise(
        PRODUCT, INPUTS,
        [p_entries.to(tl.int64), weight.to(tl.int64) + o_byte, p_scale, count, row_begin, 4 * stride, to_fixed, reach],
        dtype=(tl.int64, tl.int64), is_pure=False, pack=1,
    )  # fmt: skip
    if TWO_EACH:
        first = tl.reshape(tl.join(first, second), (64 * WARPS,))
        second = first
    elif not SWIGLU:
        second = first
    return first, second


@triton.jit
def accumulate_interpreted(
    p_entries, weight, scale, n, row_begin, count, stride, half, i_tile, to_fixed, o_out,
    SWIGLU: tl.constexpr, INT4: tl.constexpr, LISTED: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """`accumulate_rows` in plain Triton, for the interpreter: the same integers. o_out: which outputs of the tile."""
    ROWS: tl.constexpr = 64
    if INT4:
        o_byte = i_tile * 128 + o_out % 64 // 8 * 16 + o_out // 64 * 4 + o_out % 8 // 2
        m_out = o_out < 256
    elif SWIGLU:
        o_byte = i_tile * 64 + o_out % 64 + o_out // 64 * half * 4
        m_out = (i_tile * 64 + o_out % 64 < half * 4) & (o_out < 128)
    else:
        o_byte = i_tile * 128 + o_out
        m_out = (o_byte < stride * 4) & (o_out < 128)
    total = o_out.to(tl.int64) * 0
    for first in tl.range(0, count, ROWS, num_stages=1):
        o_item = first + tl.arange(0, ROWS)
        b_item = tl.load(p_entries + o_item, mask=o_item < count, other=0)
        o_row = b_item >> 16 if LISTED else row_begin + o_item
        b_entry = (low_half(b_item, DTYPE) if LISTED else b_item.to(tl.float32)) * to_fixed
        mask = (o_item < count)[:, None] & m_out[None, :]
        b_q = tl.load(weight + o_row.to(tl.int64)[:, None] * (stride * 4) + o_byte[None, :], mask=mask, other=0)
        if INT4:
            b_q = ((b_q.to(tl.int32) >> (o_out % 2 * 4)[None, :]) & 15) - 8
            p_scale = scale + (i_tile.to(tl.int64) * n + o_row[:, None]) * 4 + (o_out // 64)[None, :]
            b_scale = tl.load(p_scale, mask=mask, other=0.0).to(tl.float32)
            b_v = (in_bits(b_entry[:, None] * b_scale) - _MAGIC_BITS).to(tl.int64)
            total += tl.sum(16 * b_q.to(tl.int64) * b_v, 0)
        else:
            total += tl.sum(b_q.to(tl.int64) * (in_bits(b_entry) - _MAGIC_BITS).to(tl.int64)[:, None], 0)
    return total
