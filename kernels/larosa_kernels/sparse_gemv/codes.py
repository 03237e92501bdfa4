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

A lane is (g, t): it loads 16 bytes, words 4 g to 4 g + 3 of a row's piece of 128 bytes, in row t of the warp's four.
- 8 bits: words 4 g and 4 g + 1 are rows m = g and g + 8 of one product, the other two of another.
- 4 bits: word 4 g + c is word g of group c, see packing.py: its codes at even places are row g, those at odd places
  row g + 8, and each of the four groups has a product and a scale of its own.
Needs compute capability 8.0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.pairs import low_half

_MMA = "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {$0,$1,$2,$3}, "
_PAIRS = tl.constexpr(
    tuple(
        f"{_MMA}{{${4 + 2 * p},${5 + 2 * p},${8 + 2 * p},${9 + 2 * p}}}, {{$12,$16}}, {{$20,$21,$22,$23}};"
        for p in (0, 1)
    )
)
"""Of words 2 p and 2 p + 1. Operands are registers of a thread: four sums, then four of each input."""
_PAIR_INPUTS = tl.constexpr("=r,=r,=r,=r" + ",r" * 20)
_GROUPS = tl.constexpr(
    tuple(
        f"{_MMA}{{${4 + c},${8 + c},${12 + c},${16 + c}}}, {{${20 + c},${24 + c}}}, {{$28,$29,$30,$31}};"
        for c in range(4)
    )
)
"""Of the words and entries of group c."""
_GROUP_INPUTS = tl.constexpr("=r,=r,=r,=r" + ",r" * 28)
_ZERO = tl.constexpr(0x4B400000)
_VOTE = tl.constexpr("{ .reg .pred p; setp.lt.s32 p, $1, 0; vote.sync.ballot.b32 $0, p, 0xffffffff; }")


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
def _pick(bits, selector):
    """Bytes of bits, of 64 (byte 4), of zeros (5 to 7)."""
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, 0x40, $2;", "=r,r,r", [bits, selector], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _multiply(sums, first, second, x_first, x_second, PAIR: tl.constexpr):
    """sums [P, 4] plus words 2 PAIR and 2 PAIR + 1 of two rows [P, 4] times their entries [P, 4], four alike."""
    return tl.inline_asm_elementwise(
        _PAIRS[PAIR], _PAIR_INPUTS, [first, second, x_first, x_second, sums],
        dtype=tl.int32, is_pure=True, pack=4,
    )  # fmt: skip


@triton.jit
def _multiply_group(sums, first_low, first_high, second_low, second_high, x_first, x_second, C: tl.constexpr):
    """sums [P, 4] plus group C of two rows, lower and upper codes [P, 4], times their entries by group [P, 4]."""
    return tl.inline_asm_elementwise(
        _GROUPS[C], _GROUP_INPUTS, [first_low, first_high, second_low, second_high, x_first, x_second, sums],
        dtype=tl.int32, is_pure=True, pack=4,
    )  # fmt: skip


@triton.jit
def _lower(words, upper):
    """16 times the codes at even places, as four signed bytes a word. upper: 0xF0F0F0F0, unknown to the compiler."""
    return ((words << 4) ^ -2139062144) & upper  # 0x80808080


@triton.jit
def _upper(words, upper):
    """The same of those at odd places."""
    return (words ^ -2139062144) & upper


@triton.jit
def _load_items(
    source, first, count, lo, STEP: tl.constexpr, ROWS: tl.constexpr, PROGRAM: tl.constexpr,
    LISTED: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """(rows, entries fp32, taken), STEP of each a lane: items of a list, or all entries from row lo on."""
    p = tl.arange(0, PROGRAM)
    rows = ()
    entries = ()
    takens = ()
    for j in tl.static_range(STEP):
        at = first + j * ROWS + p // 32 * 4 + p % 4
        item = tl.load(source + at, mask=at < count, other=0)
        if LISTED:
            rows = rows + (item >> 16,)
            entries = entries + (low_half(item, DTYPE),)
            takens = takens + (item != 0,)
        else:
            rows = rows + (lo + at,)
            entries = entries + (item.to(tl.float32),)
            takens = takens + (at < count,)
    return rows, entries, takens


@triton.jit
def _load_words(
    cells, fit, scales, items, stride,
    STEP: tl.constexpr, NIBBLES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """STEP rows of words [P, 4] a lane, and the scales of four groups [P, 4]."""
    rows, _, takens = items
    words = ()
    found = ()
    for j in tl.static_range(STEP):
        begin = (rows[j].to(tl.int64) if WIDE else rows[j]) * stride
        cell = cells + tl.multiple_of(begin, 4)[:, None]
        words = words + (tl.load(cell, mask=takens[j][:, None] & fit, other=0, eviction_policy="evict_first"),)
        if NIBBLES:
            cell = scales + rows[j][:, None] * 4
            found = found + (tl.load(cell, mask=takens[j][:, None], other=0.0).to(tl.float32),)
    return words, found


@triton.jit
def _all(x):
    return tl.broadcast_to(x, (x.shape[0], 4))


@triton.jit
def _add(sums, items, loaded, up, stride, select_high, select_low, STEP: tl.constexpr, NIBBLES: tl.constexpr):
    """The sums with STEP rows a lane, two at a time."""
    _, entries, _ = items
    words, scales = loaded
    # Zero behind a vote of the warp: so no product is moved between the loads in front, where it would wait for them.
    none = tl.inline_asm_elementwise(_VOTE, "=r,r", [stride], dtype=tl.int32, is_pure=False, pack=1)
    high = (select_high | none)[:, None]
    low = (select_low | none)[:, None]
    upper = none | -252645136
    for j in tl.static_range(0, STEP, 2):
        one = (entries[j] * up)[:, None]
        two = (entries[j + 1] * up)[:, None]
        added = ()
        if NIBBLES:
            one = in_bits(one * scales[j])
            two = in_bits(two * scales[j + 1])
            one_high, two_high = _pick(one, _all(high)), _pick(two, _all(high))
            one_low, two_low = _pick(one, _all(low)), _pick(two, _all(low))
            a, b = _lower(words[j], upper), _upper(words[j], upper)
            c, d = _lower(words[j + 1], upper), _upper(words[j + 1], upper)
            for group in tl.static_range(4):
                added = added + (_multiply_group(sums[2 * group], a, b, c, d, one_high, two_high, group),)
                added = added + (_multiply_group(sums[2 * group + 1], a, b, c, d, one_low, two_low, group),)
        else:
            one = in_bits(one)
            two = in_bits(two)
            one_high, two_high = _all(_pick(one, high)), _all(_pick(two, high))
            one_low, two_low = _all(_pick(one, low)), _all(_pick(two, low))
            for pair in tl.static_range(2):
                at = sums[2 * pair], sums[2 * pair + 1]
                added = added + (_multiply(at[0], words[j], words[j + 1], one_high, two_high, pair),)
                added = added + (_multiply(at[1], words[j], words[j + 1], one_low, two_low, pair),)
        sums = added
    return sums


@triton.jit
def _met(
    sums, MEETING: tl.constexpr, INPUTS: tl.constexpr, WARPS: tl.constexpr, SWIGLU: tl.constexpr, PIECE: tl.constexpr
):
    """The sums of all warps, by meeting.py: of gate and up [P] each, or twice those of all outputs, [P] or [2 P]."""
    found = tl.inline_asm_elementwise(MEETING, INPUTS, list(sums), dtype=tl.int64, is_pure=False, pack=4)
    both, _ = tl.split(tl.reshape(found, (32 * WARPS, 2, 2)))
    if SWIGLU:
        first, second = tl.split(both)
    elif PIECE > 32 * WARPS:
        first = tl.reshape(both, (64 * WARPS,))
        second = first
    else:
        first, _ = tl.split(both)
        second = first
    return first, second


@triton.jit
def add_codes(
    source, weight, scale, n, lo, count, stride, half, block, up,
    STEP: tl.constexpr, WARPS: tl.constexpr, SWIGLU: tl.constexpr, NIBBLES: tl.constexpr, LISTED: tl.constexpr,
    DTYPE: tl.constexpr, WIDE: tl.constexpr, MEETING: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """Entries times a piece of 128 bytes of `count` rows -> int64 sums of its outputs, see `_met`.

    stride and half count words of 4 bytes. SWIGLU: of 8 bits, lanes g < 4 take gate's piece of 64 bytes, the others
    up's, `half` further. scale: of 4-bit codes, [blocks, n, 4].
    """
    PROGRAM: tl.constexpr = 32 * WARPS
    ROWS: tl.constexpr = 4 * WARPS
    p = tl.arange(0, PROGRAM)
    g = p % 32 // 4
    if SWIGLU and not NIBBLES:
        word = block * 16 + g % 4 * 4
        ends = half
        behind = g // 4 * half
    else:
        word = block * 32 + g * 4
        ends = stride
        behind = g * 0
    own = tl.multiple_of(word + behind, 4)
    ends = tl.multiple_of(ends, 4)
    four = tl.arange(0, 4)[None, :]
    cells = weight.to(tl.pointer_type(tl.int32)) + (own[:, None] + four)
    fit = word[:, None] + four < ends
    scales = scale
    if NIBBLES:
        scales = scale + block.to(tl.int64) * n * 4 + p[:, None] * 0 + four
    place = g % 4 * 4
    selector = 0x5555 - (5 << place)
    select_low = selector + (g // 4 << place)
    select_high = selector + (2 + g // 4 * 2 << place)
    sums = ()
    for _ in tl.static_range(8 if NIBBLES else 4):
        sums = sums + (tl.zeros((PROGRAM, 4), tl.int32),)
    TURN: tl.constexpr = STEP * ROWS
    this = _load_items(source, 0, count, lo, STEP, ROWS, PROGRAM, LISTED, DTYPE)
    second = _load_items(source, TURN, count, lo, STEP, ROWS, PROGRAM, LISTED, DTYPE)
    loaded = _load_words(cells, fit, scales, this, stride, STEP, NIBBLES, WIDE)
    for first in tl.range(0, count, 2 * TURN, num_stages=1):
        third = _load_items(source, first + 2 * TURN, count, lo, STEP, ROWS, PROGRAM, LISTED, DTYPE)
        behind_it = _load_words(cells, fit, scales, second, stride, STEP, NIBBLES, WIDE)
        sums = _add(sums, this, loaded, up, stride, select_high, select_low, STEP, NIBBLES)
        fourth = _load_items(source, first + 3 * TURN, count, lo, STEP, ROWS, PROGRAM, LISTED, DTYPE)
        loaded = _load_words(cells, fit, scales, third, stride, STEP, NIBBLES, WIDE)
        sums = _add(sums, second, behind_it, up, stride, select_high, select_low, STEP, NIBBLES)
        this = third
        second = fourth
    return _met(sums, MEETING, INPUTS, WARPS, SWIGLU, 256 if NIBBLES else 128)


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
