"""Codes of 4 and 8 bits to fp32 by one instruction a code: device functions of the sparse product.

Conversions from integer bound the product where they were used (NOTES.md of the benchmarks), and so did taking an
offset away from every code. So the bits of a code, unsigned, are taken as those of a subnormal float, exactly
code * 2^(place - 149), where place is the code's first bit; a multiply-add takes subnormals as fast as others. Entries
are lifted by 2^64, so that products are none. After the sum the powers of two are undone, and the offset times the sum
of the entries, which all outputs share, is taken away: see `settle`. A kept entry that is infinite gives no number.

8 bits: the byte, its sign bit turned over, is code + 128, at bit 0.
4 bits: code + 8 stays where it lies in its word, up to bit 16; words are shifted once for what lies higher.
"""

from __future__ import annotations

import triton
import triton.language as tl

LIFT = tl.constexpr(2.0**64)
"""What entries are multiplied by."""


@triton.jit
def _byte(words, zero, PLACE: tl.constexpr, INTERPRETED: tl.constexpr):
    """Byte PLACE of each word alone."""
    if INTERPRETED:
        found = ((words >> (8 * PLACE)) & 255) | zero
    else:
        found = tl.inline_asm_elementwise(
            "prmt.b32 $0, $1, $2, $3;", "=r,r,r,n", [words, zero, 0x4440 + PLACE], dtype=tl.int32, is_pure=True, pack=1
        )
    return found.to(tl.float32, bitcast=True)


@triton.jit
def spread_bytes(words, zero, INTERPRETED: tl.constexpr):
    """[rows, c] words of 4 codes -> [rows, 4 c] fp32, (code + 128) 2^-149, from low to high.

    zero: 0, of which the compiler does not know, so that nothing is done before it is there.
    """
    turned = words ^ (zero ^ -2139062144)  # 0x80808080
    even = tl.interleave(_byte(turned, zero, 0, INTERPRETED), _byte(turned, zero, 2, INTERPRETED))
    odd = tl.interleave(_byte(turned, zero, 1, INTERPRETED), _byte(turned, zero, 3, INTERPRETED))
    return tl.interleave(even, odd)


@triton.jit
def _placed(words, zero, SHIFT: tl.constexpr):
    return ((words & (15 << SHIFT)) | zero).to(tl.float32, bitcast=True)


@triton.jit
def spread_nibbles(words, zero):
    """[rows, c] words of 8 codes -> [rows, 8 c] fp32, (code + 8) 2^(place - 149), from low to high. zero: as above."""
    high = words >> 12
    even = tl.interleave(
        tl.interleave(_placed(words, zero, 0), _placed(words, zero, 16)),
        tl.interleave(_placed(words, zero, 8), _placed(high, zero, 12)),
    )
    odd = tl.interleave(
        tl.interleave(_placed(words, zero, 4), _placed(high, zero, 8)),
        tl.interleave(_placed(words, zero, 12), _placed(high, zero, 16)),
    )
    return tl.interleave(even, odd)


@triton.jit
def settle(total, entries, NIBBLES: tl.constexpr):
    """Sums [rows, columns] of lifted entries times spread codes, and of these entries [rows, 1] -> of entries times codes."""
    if NIBBLES:
        at = tl.arange(0, total.shape[1]) % 8
        place = 4 * tl.where(at < 5, at, at - 3)
        offset = 8.0
    else:
        place = tl.zeros([total.shape[1]], dtype=tl.int32)
        offset = 128.0
    undone = ((127 + 149 - 64 - place) << 23).to(tl.float32, bitcast=True)  # 2^(149 - place) / LIFT
    return total * undone[None, :] - entries * (offset / LIFT)
