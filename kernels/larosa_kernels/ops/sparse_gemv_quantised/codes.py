"""Codes of 8 and 4 bits times entries in whole numbers, on the tensor cores: device functions of the product of codes.

Codes are whole numbers, so entries become whole numbers too: x, for 4 bits times the scale that it meets, is rounded
to v / 2^k, where 2^k is chosen by the largest that there can be so that |v| stays within 2^22. What is rounded away is
below 2^-22 of the largest entry. From there on everything is exact: sums have the same bits in any order, whatever the
launch shape and however many programs share a sum.

v + 1.5 * 2^23 is an fp32 number that holds v in its bits: v = b0 + 2^8 b1 + 2^16 (b2 - 64) with its bytes b,
unsigned. A code goes to the tensor cores as it is stored: a byte, or 16 times a code of 4 bits, the four bits being
the upper ones of a byte. One `mma.m16n8k32` takes 8 rows of the weight by 16 words of 4 codes. The four codes of a
word belong to one row but to different outputs; they lie along the sum's dimension k, so the entry stands in four
columns n, at another k in each, with zeros elsewhere: column n holds output n % 4 of each word, under b0 for n < 4 and
b1 for n >= 4. A second one does the same under b2 and 64.

A lane is (g, t): it has 16 bytes, words 4 g to 4 g + 3 of a row's piece of 128 bytes, in row t of the warp's four.
- 8 bits: words 4 g and 4 g + 1 are rows m = g and g + 8 of one product, the other two of another.
- 4 bits: word 4 g + c is word g of group c, see packing.py: its codes at even places are row g, those at odd places
  row g + 8, and each of the four groups has a product and a scale of its own.
Needs compute capability 8.0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.common.packed_half import low_half

_ZERO = tl.constexpr(0x4B400000)


@triton.jit
def fixed_point(largest):
    """(2^k, 2^-k) fp32 with largest 2^k < 2^22; the second no number where the largest is none or infinite."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    up = tl.minimum(275 - exponent, 253)
    down = ((254 - up) << 23).to(tl.float32, bitcast=True)
    return (up << 23).to(tl.float32, bitcast=True), tl.where(exponent == 255, float("nan"), down)


@triton.jit
def in_bits(x):
    """The bits of fp32 x, within 2^22, rounded to a whole number and put on top of 1.5 * 2^23, whose last bit is 1."""
    return (x + 12582912.0).to(tl.int32, bitcast=True)


@triton.jit
def add_codes(
    source, weight, scale, n, lo, count, stride, half, block, up,
    PRODUCT: tl.constexpr, INPUTS: tl.constexpr, WARPS: tl.constexpr, SWIGLU: tl.constexpr, NIBBLES: tl.constexpr,
    PAIRS: tl.constexpr,
):  # fmt: skip
    """Entries times a piece of 128 bytes of `count` rows, by product.py -> int64 sums of its outputs.

    Of gates and ups [P] each, or twice those of all outputs, [P], or with PAIRS [2 P]. stride and half count words of
    4 bytes. SWIGLU: of 8 bits, a piece is 64 bytes of gates and those of their ups, `half` further. scale: of
    4-bit codes, [blocks, n, 4].
    """
    p = tl.arange(0, 32 * WARPS)
    part = p % 8
    if SWIGLU and not NIBBLES:
        byte = block * 64 + part % 4 * 16
        reach = tl.where(byte < 4 * half, 16, 0)
        byte += part // 4 * 4 * half
    else:
        byte = block * 128 + part * 16
        reach = tl.where(byte < 4 * stride, 16, 0)
    scales = scale.to(tl.int64)
    if NIBBLES:
        scales += block.to(tl.int64) * n * 8
    first, second = tl.inline_asm_elementwise(
        PRODUCT, INPUTS,
        [source.to(tl.int64), weight.to(tl.int64) + byte, scales, count, lo, 4 * stride, up, reach],
        dtype=(tl.int64, tl.int64), is_pure=False, pack=1,
    )  # fmt: skip
    if PAIRS:
        first = tl.reshape(tl.join(first, second), (64 * WARPS,))
        second = first
    elif not SWIGLU:
        second = first
    return first, second


@triton.jit
def add_codes_plainly(
    source, weight, scale, n, lo, count, stride, half, block, up, place,
    SWIGLU: tl.constexpr, NIBBLES: tl.constexpr, LISTED: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """`add_codes` row by row and code by code, as Triton's interpreter can run it: the same whole numbers.

    place: which outputs of the piece.
    """
    ROWS: tl.constexpr = 64
    if NIBBLES:
        byte = block * 128 + place % 64 // 8 * 16 + place // 64 * 4 + place % 8 // 2
        fit = place < 256
    elif SWIGLU:
        byte = block * 64 + place % 64 + place // 64 * half * 4
        fit = (block * 64 + place % 64 < half * 4) & (place < 128)
    else:
        byte = block * 128 + place
        fit = (byte < stride * 4) & (place < 128)
    total = place.to(tl.int64) * 0
    for first in tl.range(0, count, ROWS, num_stages=1):
        at = first + tl.arange(0, ROWS)
        item = tl.load(source + at, mask=at < count, other=0)
        row = item >> 16 if LISTED else lo + at
        entry = (low_half(item, DTYPE) if LISTED else item.to(tl.float32)) * up
        mask = (at < count)[:, None] & fit[None, :]
        code = tl.load(weight + row.to(tl.int64)[:, None] * (stride * 4) + byte[None, :], mask=mask, other=0)
        if NIBBLES:
            code = ((code.to(tl.int32) >> (place % 2 * 4)[None, :]) & 15) - 8
            cell = scale + (block.to(tl.int64) * n + row[:, None]) * 4 + (place // 64)[None, :]
            own = tl.load(cell, mask=mask, other=0.0).to(tl.float32)
            total += tl.sum(16 * code.to(tl.int64) * (in_bits(entry[:, None] * own) - _ZERO).to(tl.int64), 0)
        else:
            total += tl.sum(code.to(tl.int64) * (in_bits(entry) - _ZERO).to(tl.int64)[:, None], 0)
    return total
