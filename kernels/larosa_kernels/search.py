"""The k-th largest magnitude of a vector held by one program: device functions that the selecting ops share.

Magnitudes are compared as their 15-bit patterns. Two patterns share an int32 word, so that one instruction compares
both (`set.geu` on packed halves from compute capability 9.0 on, plain integer arithmetic elsewhere). A round counts,
for one or three candidates, how many patterns reach them; the range of possible limits shrinks by 2 or 4.
NaN counts as larger than any number; a limit of NaN is never returned.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def round_to(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """fp32 to `dtype`, to nearest even. Triton's interpreter truncates to bf16, hence the integer way there."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return nearest.to(tl.int16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def magnitude_bits(x):
    """The 15 bits of a bf16 or fp16 magnitude as int32: their order is that of the magnitudes."""
    return x.to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF


@triton.jit
def pair_words(bits, BLOCK: tl.constexpr):
    """[BLOCK] patterns to [BLOCK / 2] words: entry 2j in the low half, 2j + 1 in the high half."""
    low, high = tl.split(tl.reshape(bits, (BLOCK // 2, 2)))
    return low | (high << 16)


@triton.jit
def _reach(words, candidate, INFINITY: tl.constexpr, PACKED: tl.constexpr):
    """Per word, a code whose sum over words tells how many patterns are >= candidate; `_narrow` reads it.

    0 would count the padding and beyond infinity lie the NaNs: such candidates are moved, and ignored afterwards.
    """
    pattern = tl.minimum(tl.maximum(candidate, 1), INFINITY) * 0x10001
    if PACKED == "bf16":
        return tl.inline_asm_elementwise(
            "set.geu.u32.bf16x2 $0, $1, $2;", "=r,r,r", [words, pattern], dtype=tl.int32, is_pure=True, pack=1
        )
    elif PACKED == "fp16":
        return tl.inline_asm_elementwise(
            "set.geu.u32.f16x2 $0, $1, $2;", "=r,r,r", [words, pattern], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        # Bit 15 of each half is set (-0x7FFF8000 is 0x80008000) and survives the subtraction iff pattern >= candidate.
        return (((words | -0x7FFF8000) - pattern) >> 15) & 0x00010001


@triton.jit
def _narrow(low, high, at_least, above, k, candidate, code, PACKED: tl.constexpr):
    """Use one count: the limit is >= candidate iff count >= k. A candidate outside (low, high] tells nothing.

    code: summed codes of L low and H high halves; 65536 H + L, or from `set`, 0xFFFF a half, 65536 (L - H) - L.
    """
    if PACKED == "none":
        count = (code & 0xFFFF) + (code >> 16)
    else:
        low_half = (0 - code) & 0xFFFF
        count = 2 * low_half - ((code + low_half) >> 16)
    inside = (candidate > low) & (candidate <= high)
    reached = inside & (count >= k)
    missed = inside & (count < k)
    low = tl.where(reached, candidate, low)
    at_least = tl.where(reached, count, at_least)
    high = tl.where(missed, candidate - 1, high)
    above = tl.where(missed, count, above)
    return low, high, at_least, above


@triton.jit
def _add3(a0, a1, a2, b0, b1, b2):
    return a0 + b0, a1 + b1, a2 + b2


@triton.jit
def _round1(words, low, high, at_least, above, k, c0, INFINITY: tl.constexpr, PACKED: tl.constexpr):
    """Narrow by one candidate."""
    return _narrow(low, high, at_least, above, k, c0, tl.sum(_reach(words, c0, INFINITY, PACKED), 0), PACKED)


@triton.jit
def _round3(
    words, low, high, at_least, above, k, c0, c1, c2,
    INFINITY: tl.constexpr, PACKED: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    """Narrow by three candidates; TOGETHER sums their codes in one pass over the warps."""
    s0 = _reach(words, c0, INFINITY, PACKED)
    s1 = _reach(words, c1, INFINITY, PACKED)
    s2 = _reach(words, c2, INFINITY, PACKED)
    if TOGETHER:
        s0, s1, s2 = tl.reduce((s0, s1, s2), 0, _add3)
    else:
        s0 = tl.sum(s0, 0)
        s1 = tl.sum(s1, 0)
        s2 = tl.sum(s2, 0)
    low, high, at_least, above = _narrow(low, high, at_least, above, k, c0, s0, PACKED)
    low, high, at_least, above = _narrow(low, high, at_least, above, k, c1, s1, PACKED)
    return _narrow(low, high, at_least, above, k, c2, s2, PACKED)


@triton.jit
def kth_magnitude(
    words, n, k, bracket,
    INFINITY: tl.constexpr, WAYS: tl.constexpr, PACKED: tl.constexpr, TOGETHER: tl.constexpr,
    BRACKETED: tl.constexpr,
):  # fmt: skip
    """The k-th largest pattern with its counts: (limit, how many >= limit, how many > limit).

    words: [BLOCK / 2] int32 from `pair_words`, padding 0; bracket: pointer to (low, high), tried first.
    k = n needs no search and gives (0, n, 0).
    """
    low = tl.full([], 0, tl.int32)
    high = tl.full([], INFINITY, tl.int32)
    if k >= n:
        high = tl.full([], 0, tl.int32)
    at_least = tl.full([], 0, tl.int32) + n
    above = tl.full([], 0, tl.int32)
    if BRACKETED:
        first = tl.load(bracket)
        last = tl.load(bracket + 1)
        if WAYS == 3:
            middle = (first + last + 1) // 2
            low, high, at_least, above = _round3(
                words, low, high, at_least, above, k, first, middle, last + 1, INFINITY, PACKED, TOGETHER
            )
        else:
            low, high, at_least, above = _round1(words, low, high, at_least, above, k, first, INFINITY, PACKED)
            low, high, at_least, above = _round1(words, low, high, at_least, above, k, last + 1, INFINITY, PACKED)
    while low < high:
        step = (high - low + 1 + WAYS) // (WAYS + 1)
        if WAYS == 3:
            low, high, at_least, above = _round3(
                words, low, high, at_least, above, k, low + step, low + 2 * step, low + 3 * step,
                INFINITY, PACKED, TOGETHER,
            )  # fmt: skip
        else:
            low, high, at_least, above = _round1(words, low, high, at_least, above, k, low + step, INFINITY, PACKED)
    return low, at_least, above


@triton.jit
def last_tie(words, limit, room, BLOCK: tl.constexpr):
    """The index of the room-th entry whose pattern equals the limit, lowest index first."""
    low_tie = (words & 0xFFFF) == limit
    ties = low_tie.to(tl.int32) + ((words >> 16) == limit).to(tl.int32)
    up_to = tl.cumsum(ties, 0)
    before = up_to - ties
    here = (before < room) & (up_to >= room)
    in_high_half = 1 - (low_tie & (before == room - 1)).to(tl.int32)
    return tl.sum(tl.where(here, 2 * tl.arange(0, BLOCK // 2) + in_high_half, 0), 0)


@triton.jit
def search_row(
    bits, n, k, bracket, keep,
    BLOCK: tl.constexpr, STRICT: tl.constexpr, INFINITY: tl.constexpr, WAYS: tl.constexpr, PACKED: tl.constexpr,
    TOGETHER: tl.constexpr, BRACKETED: tl.constexpr,
):  # fmt: skip
    """Write (limit_bits, last_index) of one row to keep. bits: [BLOCK] int32, padding 0."""
    words = pair_words(bits, BLOCK)
    limit, at_least, above = kth_magnitude(words, n, k, bracket, INFINITY, WAYS, PACKED, TOGETHER, BRACKETED)
    last_index = tl.full([], 0, tl.int32) + n
    if STRICT:
        if at_least > k:
            last_index = last_tie(words, limit, k - above, BLOCK)
    tl.store(keep, limit)
    tl.store(keep + 1, last_index)


@triton.jit
def stays(bits, index, limit, last_index):
    """Which entries a (limit_bits, last_index) pair keeps."""
    return (bits > limit) | ((bits == limit) & (index <= last_index))
