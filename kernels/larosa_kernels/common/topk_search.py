"""The k-th largest magnitude of a vector held by one program, by counting: device functions. README.md explains it.

Two 15-bit patterns share an int32 word (packed_half.py). NaN counts as larger than any number, and is never returned.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def round_to(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """fp32 to `dtype`, to nearest even. Triton's interpreter truncates to bf16, hence integers there."""
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
def _reach(words, candidate, INFINITY: tl.constexpr, PACKED: tl.constexpr):
    """Per word 0xFFFF in each half whose pattern is >= candidate, else 0.

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
        ones = (((words | -0x7FFF8000) - pattern) >> 15) & 0x00010001
        return (ones << 16) - ones


@triton.jit
def _count_per_thread(masks, THREADS: tl.constexpr, VECTOR: tl.constexpr):
    """How many halves of a thread's masks are set, [THREADS]: L low and H high ones sum to 65536 (L - H) - L."""
    turns: tl.constexpr = masks.shape[0] // (THREADS * VECTOR)
    total = tl.sum(tl.sum(tl.reshape(masks, (turns, THREADS, VECTOR)), 2), 0)
    low = (0 - total) & 0xFFFF
    return 2 * low - ((total + low) >> 16)


@triton.jit
def _count_both(
    words, first, second,
    INFINITY: tl.constexpr, PACKED: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """How many patterns of a thread are >= first, and, in the upper half, >= second."""
    one = _count_per_thread(_reach(words, first, INFINITY, PACKED), THREADS, VECTOR)
    two = _count_per_thread(_reach(words, second, INFINITY, PACKED), THREADS, VECTOR)
    return one | (two << 16)


@triton.jit
def largest_of(words):
    """The largest pattern of each word."""
    return tl.maximum(words & 0x7FFF, (words >> 16) & 0x7FFF)


@triton.jit
def _sums_and_largest(a, b, c, d, e, f):
    return a + d, b + e, tl.maximum(c, f)


@triton.jit
def _narrow(low, high, at_least, above, k, candidate, count):
    """Use one count: the k-th is >= candidate iff count >= k. A candidate outside (low, high] tells nothing."""
    inside = (candidate > low) & (candidate <= high)
    reached = inside & (count >= k)
    missed = inside & (count < k)
    low = tl.where(reached, candidate, low)
    at_least = tl.where(reached, count, at_least)
    high = tl.where(missed, candidate - 1, high)
    above = tl.where(missed, count, above)
    return low, high, at_least, above


@triton.jit
def first_candidates(search_range, INFINITY: tl.constexpr, HAS_RANGE: tl.constexpr):
    """Where a search begins: at the ends of the search_range [2], or around 1."""
    if HAS_RANGE:
        first = tl.load(search_range)
        second = tl.load(search_range + 1) + 1
    else:
        first = tl.full([], INFINITY // 2 - 512, tl.int32)
        second = tl.full([], INFINITY // 2 + 256, tl.int32)
    return first, second


@triton.jit
def kth_magnitude(
    words, n, k, first, second,
    INFINITY: tl.constexpr, PACKED: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """The k-th largest pattern with its counts: (threshold, how many >= threshold, how many > threshold).

    words: magnitudes, padding 0; first, second: the candidates of the first round, see `first_candidates`.
    k = n needs no search and gives (0, n, 0).
    """
    both = tl.sum(_count_both(words, first, second, INFINITY, PACKED, THREADS, VECTOR), 0)
    low, high, at_least, above = _everything(n, k, INFINITY)
    low, high, at_least, above = _use(low, high, at_least, above, k, first, second, both)
    return _search_on(words, k, low, high, at_least, above, INFINITY, PACKED, THREADS, VECTOR)


@triton.jit
def kth_magnitude_and_largest(
    words, n, k, first, second,
    INFINITY: tl.constexpr, PACKED: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """`kth_magnitude`, and the largest pattern.

    The first round finds that too, and tries two candidates between first and second: four cost less than a round more.
    """
    turns: tl.constexpr = words.shape[0] // (THREADS * VECTOR)
    largest = tl.max(tl.max(tl.reshape(largest_of(words), (turns, THREADS, VECTOR)), 2), 0)
    apart = (second - first) * 3 // 8
    third = first + apart
    fourth = second - apart
    outer = _count_both(words, first, second, INFINITY, PACKED, THREADS, VECTOR)
    inner = _count_both(words, third, fourth, INFINITY, PACKED, THREADS, VECTOR)
    outer, inner, largest = tl.reduce((outer, inner, largest), 0, _sums_and_largest)
    low, high, at_least, above = _everything(n, k, INFINITY)
    low, high, at_least, above = _use(low, high, at_least, above, k, first, second, outer)
    low, high, at_least, above = _use(low, high, at_least, above, k, third, fourth, inner)
    threshold, at_least, above = _search_on(words, k, low, high, at_least, above, INFINITY, PACKED, THREADS, VECTOR)
    return threshold, at_least, above, largest


@triton.jit
def _everything(n, k, INFINITY: tl.constexpr):
    """(low, high, at_least, above) of a search that has not begun, or, with k = n, need not."""
    low = tl.full([], 0, tl.int32)
    high = tl.full([], INFINITY, tl.int32)
    if k >= n:
        high = tl.full([], 0, tl.int32)
    return low, high, low + n, low


@triton.jit
def _use(low, high, at_least, above, k, first, second, both):
    """Narrow by the counts of two candidates."""
    low, high, at_least, above = _narrow(low, high, at_least, above, k, first, both & 0xFFFF)
    return _narrow(low, high, at_least, above, k, second, (both >> 16) & 0xFFFF)


@triton.jit
def _search_on(
    words, k, low, high, at_least, above,
    INFINITY: tl.constexpr, PACKED: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """The rounds after the first."""
    turn = tl.full([], 1, tl.int32)
    while low < high:
        span = high - low + 1
        share = (at_least - k + 0.5) / tl.maximum(at_least - above, 1)
        guess = low + (share * span).to(tl.int32)
        thirds = turn % 4 == 0
        first = tl.maximum(tl.where(thirds, low + span // 3, guess - span // 16), low + 1)
        second = tl.where(thirds, high - span // 3, guess + span // 16 + 1)
        second = tl.minimum(tl.maximum(second, first + 1), high)
        both = tl.sum(_count_both(words, first, second, INFINITY, PACKED, THREADS, VECTOR), 0)
        low, high, at_least, above = _use(low, high, at_least, above, k, first, second, both)
        turn += 1
    return low, at_least, above


@triton.jit
def last_tie(words, threshold, room, THREADS: tl.constexpr, VECTOR: tl.constexpr):
    """The index of the room-th entry whose pattern equals the threshold, lowest index first.

    Of a wide vector first the stretch of THREADS * VECTOR words that holds it: a scan of all words would spill.
    """
    SPAN: tl.constexpr = THREADS * VECTOR
    TURNS: tl.constexpr = words.shape[0] // SPAN
    ties = ((words & 0xFFFF) == threshold).to(tl.int32) | (((words >> 16) == threshold).to(tl.int32) << 1)
    start = 0
    if TURNS > 4:
        ties = tl.reshape(ties, (TURNS, SPAN))
        of_turn = tl.sum((ties & 1) + (ties >> 1), 1)
        up_to_turn = tl.cumsum(of_turn, 0)
        turn = (up_to_turn - of_turn < room) & (up_to_turn >= room)
        room -= tl.sum(tl.where(turn, up_to_turn - of_turn, 0), 0)
        start = tl.sum(tl.where(turn, 2 * SPAN * tl.arange(0, TURNS), 0), 0)
        ties = tl.sum(tl.where(turn[:, None], ties, 0), 0)
    of_word = (ties & 1) + (ties >> 1)
    up_to = tl.cumsum(of_word, 0)
    before = up_to - of_word
    here = (before < room) & (up_to >= room)
    in_high_half = 1 - ((ties & 1 == 1) & (before == room - 1)).to(tl.int32)
    return start + tl.sum(tl.where(here, 2 * tl.arange(0, ties.shape[0]) + in_high_half, 0), 0)


@triton.jit
def find_bound(
    words, n, k, first, second,
    STRICT: tl.constexpr, INFINITY: tl.constexpr, PACKED: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """(threshold, last_index) of the k largest magnitudes. words: [BLOCK / 2] int32, signs cleared, padding 0."""
    threshold, at_least, above = kth_magnitude(words, n, k, first, second, INFINITY, PACKED, THREADS, VECTOR)
    last_index = tl.full([], 0, tl.int32) + n
    if STRICT:
        if at_least > k:
            last_index = last_tie(words, threshold, k - above, THREADS, VECTOR)
    return threshold, last_index


@triton.jit
def is_selected(bits, index, threshold, last_index):
    """Which entries the selection bound (threshold, last_index) selects; bits: their magnitudes'."""
    return (bits > threshold) | ((bits == threshold) & (index <= last_index))


@triton.jit
def store_topk_bound(
    words, n, k, search_range, bound,
    STRICT: tl.constexpr, INFINITY: tl.constexpr, PACKED: tl.constexpr, HAS_RANGE: tl.constexpr,
    THREADS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Search the words of a row, and store its selection bound [2]."""
    first, second = first_candidates(search_range, INFINITY, HAS_RANGE)
    threshold, last_index = find_bound(
        words & 0x7FFF7FFF, n, k, first, second, STRICT, INFINITY, PACKED, THREADS, VECTOR
    )
    tl.store(bound, threshold)
    tl.store(bound + 1, last_index)
