"""Codes of 4 and 8 bits to fp32 without a conversion: device functions of the sparse product.

Conversions from integer bound the product where they were used (NOTES.md of the benchmarks).
So the bits of a code
become bits of a float whose exponent is known, and what is too much of it is taken away, exactly.

8 bits: the byte, its sign bit turned over, is the low byte of 2^23 + 128 + code.

4 bits: a code stays where it lies in its word: (word & 15 << 4k) | bits of 1.0 is 1 + code 2^(4k - 23) as fp32, for k
up to 4, and taking 1 + 8 * 2^(4k - 23) away is exact. The power of two that is left belongs to the output, whose codes
always lie at the same place; it is undone after the sum, exactly too. Words are shifted once for k = 5, 6, 7.
"""

from __future__ import annotations

import triton
import triton.language as tl

_BYTE_EXPONENT = tl.constexpr(0x4B000000)
"""2^23 as fp32: the last bit of its mantissa is 1."""


@triton.jit
def _byte(words, PLACE: tl.constexpr, INTERPRETED: tl.constexpr):
    """Byte PLACE of each word as code + 128, the code as fp32."""
    if INTERPRETED:
        float_of = ((words >> (8 * PLACE)) & 255) | _BYTE_EXPONENT
    else:
        float_of = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, 0x4B000000, $2;", "=r,r,n", [words, 0x7440 + PLACE], dtype=tl.int32, is_pure=True, pack=1
        )
    return float_of.to(tl.float32, bitcast=True) - (8388608.0 + 128.0)


@triton.jit
def spread_bytes(words, unit, LATE: tl.constexpr, INTERPRETED: tl.constexpr):
    """[rows, c] words of 4 codes -> [rows, 4 c] fp32, from low to high. LATE: not before `unit`, 1.0, is known."""
    signs = unit.to(tl.int32, bitcast=True) ^ -1090486144 if LATE else -2139062144  # 0x80808080
    turned = words ^ signs
    even = tl.interleave(_byte(turned, 0, INTERPRETED), _byte(turned, 2, INTERPRETED))
    odd = tl.interleave(_byte(turned, 1, INTERPRETED), _byte(turned, 3, INTERPRETED))
    return tl.interleave(even, odd)


@triton.jit
def _placed(words, one, SHIFT: tl.constexpr):
    """(code - 8) 2^(SHIFT - 23) of the code at bit SHIFT of each word; one: the bits of 1.0."""
    return ((words & (15 << SHIFT)) | one).to(tl.float32, bitcast=True) - (1.0 + 2.0 ** (SHIFT - 20))


@triton.jit
def spread_nibbles(words, unit):
    """[rows, c] words of 8 codes -> [rows, 8 c] fp32, each times its place; codes are the words' from low to high.

    unit: 1.0, of which the compiler does not know: two constants would make two instructions of one.
    """
    one = unit.to(tl.int32, bitcast=True)
    high = words >> 12
    even = tl.interleave(
        tl.interleave(_placed(words, one, 0), _placed(words, one, 16)),
        tl.interleave(_placed(words, one, 8), _placed(high, one, 12)),
    )
    odd = tl.interleave(
        tl.interleave(_placed(words, one, 4), _placed(high, one, 8)),
        tl.interleave(_placed(words, one, 12), _placed(high, one, 16)),
    )
    return tl.interleave(even, odd)


@triton.jit
def place_factor(column):
    """What undoes the place of an output's codes: 2^(23 - SHIFT)."""
    at = column % 8
    shift = 4 * tl.where(at < 5, at, at - 3)
    return ((127 + 23 - shift) << 23).to(tl.float32, bitcast=True)
