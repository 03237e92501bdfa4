"""4-bit codes to fp32 in three instructions a weight: device functions of the sparse product.

A code stays where it lies in its word: (word & 15 << 4k) | bits of 1.0 is 1 + code 2^(4k - 23) as fp32, for k up to 4,
and taking 1 + 8 * 2^(4k - 23) away is exact. The power of two that is left belongs to the output, for an output's codes
always lie at the same place; it is undone after the sum, exactly too. Words are shifted once for k = 5, 6, 7.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _placed(words, SHIFT: tl.constexpr):
    """(code - 8) 2^(SHIFT - 23) of the code at bit SHIFT of each word."""
    one = (words & (15 << SHIFT)) | 0x3F800000
    return one.to(tl.float32, bitcast=True) - (1.0 + 2.0 ** (SHIFT - 20))


@triton.jit
def spread(words):
    """[rows, c] words of 8 codes -> [rows, 8 c] fp32, each times its place; codes are the words' from low to high."""
    high = words >> 12
    even = tl.interleave(
        tl.interleave(_placed(words, 0), _placed(words, 16)), tl.interleave(_placed(words, 8), _placed(high, 12))
    )
    odd = tl.interleave(
        tl.interleave(_placed(words, 4), _placed(high, 8)), tl.interleave(_placed(words, 12), _placed(high, 16))
    )
    return tl.interleave(even, odd)


@triton.jit
def place_factor(column):
    """What undoes the place of an output's codes: 2^(23 - SHIFT)."""
    at = column % 8
    shift = 4 * tl.where(at < 5, at, at - 3)
    return ((127 + 23 - shift) << 23).to(tl.float32, bitcast=True)
