"""Codes of 8 and 4 bits times entries in whole numbers, on the tensor cores: device functions of the product of codes.

Codes are whole numbers, so entries become whole numbers too: x, for 4 bits times the scale that it meets, is rounded to
v / 2^k, where 2^k is chosen by the largest that there can be so that |v| stays below 2^30. What is rounded away is below
2^-29 of the largest entry, less than fp32 sums lose. From there on everything is exact: sums have the same bits in
any order, whatever the launch shape and however many programs share a sum.

v is four digits of 8 bits, balanced: v = d0 + 2^8 d1 + 2^16 d2 + 2^24 d3 with -128 <= d < 128. A code goes to the tensor
cores as it is stored: a byte, or 16 times a code of 4 bits, the four bits being the upper ones of a byte. One
`mma.m16n8k32` takes 8 rows of the weight by 16 words of 4 codes. The four codes of a word belong to one row but to
different outputs; they lie along the sum's dimension k, so the entry stands in four columns n, at another k in each,
with zeros elsewhere: column n holds output n % 4 of each word under digit n / 4. Two of these instructions take four
digits.

A lane is (g, t): its 16 bytes are words 4 g to 4 g + 3 of a row's piece of 128 bytes, in row t of the warp's four.
"""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.pairs import low_half

_PRODUCT = tl.constexpr("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 ")
_INPUTS = tl.constexpr("=r,=r,=r,=r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r,r")
_VOTE = tl.constexpr("{ .reg .pred p; setp.lt.s32 p, $1, 0; vote.sync.ballot.b32 $0, p, 0xffffffff; }")


@triton.jit
def fixed_point(largest):
    """(2^k, 2^-k) fp32 with largest 2^k < 2^30; the second no number where the largest is none or infinite."""
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    up = tl.minimum(283 - exponent, 253)
    down = (((254 - up) << 23)).to(tl.float32, bitcast=True)
    return (tl.maximum(up, 1) << 23).to(tl.float32, bitcast=True), tl.where(exponent == 255, float("nan"), down)


@triton.jit
def to_whole(x, INTERPRETED: tl.constexpr):
    """fp32 below 2^30 to the nearest int32, to even."""
    if INTERPRETED:
        few = 12582912.0  # 1.5 * 2^23: the sum's last bit is 1
        return tl.where(tl.abs(x) < 4194304.0, (x + few) - few, x).to(tl.int32)
    else:
        return tl.inline_asm_elementwise(
            "cvt.rni.s32.f32 $0, $1;", "=r,f", [x], dtype=tl.int32, is_pure=True, pack=1
        )


@triton.jit
def _digits(v):
    """The balanced digits of v as four signed bytes."""
    return (v + 0x808080) ^ 0x808080


@triton.jit
def _pick_digit(digits, selector):
    return tl.inline_asm_elementwise(
        "prmt.b32 $0, $1, 0, $2;", "=r,r,r", [digits, selector], dtype=tl.int32, is_pure=True, pack=1
    )


@triton.jit
def _multiply(sums, first, second, x_first, x_second, PAIR: tl.constexpr):
    """sums [P, 4] plus words 2 PAIR and 2 PAIR + 1 of two rows [P, 4] times their entries' digits [P, 4], four alike."""
    if PAIR == 0:
        words: tl.constexpr = "{$0,$1,$2,$3}, {$4,$5,$8,$9}, {$12,$16}, {$20,$21,$22,$23};"
    else:
        words: tl.constexpr = "{$0,$1,$2,$3}, {$6,$7,$10,$11}, {$12,$16}, {$20,$21,$22,$23};"
    return tl.inline_asm_elementwise(
        _PRODUCT + words, _INPUTS, [first, second, x_first, x_second, sums], dtype=tl.int32, is_pure=True, pack=4
    )


@triton.jit
def _bytes(words, upper, HIGH: tl.constexpr):
    """16 times every other code of 4 bits, as four signed bytes a word. upper: 0xF0F0F0F0, unknown to the compiler."""
    if HIGH:
        return (words ^ -2139062144) & upper  # 0x80808080
    else:
        return ((words << 4) ^ -2139062144) & upper


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
    STEP: tl.constexpr, NIBBLES: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """STEP rows of words [P, 4] a lane, and the scale that each meets."""
    rows, _, takens = items
    words = ()
    found = ()
    for j in tl.static_range(STEP):
        begin = (rows[j].to(tl.int64) if WIDE else rows[j]) * stride
        cell = cells + (tl.multiple_of(begin, 4) if ALIGNED else begin)[:, None]
        words = words + (tl.load(cell, mask=takens[j][:, None] & fit, other=0, eviction_policy="evict_first"),)
        if NIBBLES:
            found = found + (tl.load(scales + rows[j], mask=takens[j], other=0.0).to(tl.float32),)
    return words, found


@triton.jit
def _add(
    sums, items, loaded, up, stride, select_high, select_low, STEP: tl.constexpr, NIBBLES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """The sums with STEP rows a lane, two at a time."""
    _, entries, _ = items
    words, scales = loaded
    # Zero behind a vote of the warp: so no product is moved between the loads in front, where it would wait for them.
    none = tl.inline_asm_elementwise(_VOTE, "=r,r", [stride], dtype=tl.int32, is_pure=False, pack=1)
    high = (select_high | none)[:, None]
    low = (select_low | none)[:, None]
    for j in tl.static_range(0, STEP, 2):
        one = _digits(to_whole((entries[j] * scales[j] if NIBBLES else entries[j]) * up, INTERPRETED))[:, None]
        two = _digits(to_whole((entries[j + 1] * scales[j + 1] if NIBBLES else entries[j + 1]) * up, INTERPRETED))
        two = two[:, None]
        one_high, two_high = _all(_pick_digit(one, high)), _all(_pick_digit(two, high))
        one_low, two_low = _all(_pick_digit(one, low)), _all(_pick_digit(two, low))
        added = ()
        for half in tl.static_range(2 if NIBBLES else 1):
            first = _bytes(words[j], none | -252645136, half == 1) if NIBBLES else words[j]
            second = _bytes(words[j + 1], none | -252645136, half == 1) if NIBBLES else words[j + 1]
            for pair in tl.static_range(2):
                at = sums[4 * half + 2 * pair], sums[4 * half + 2 * pair + 1]
                added = added + (_multiply(at[0], first, second, one_high, two_high, pair),)
                added = added + (_multiply(at[1], first, second, one_low, two_low, pair),)
        sums = added
    return sums


@triton.jit
def _all(x):
    return tl.broadcast_to(x, (x.shape[0], 4))


@triton.jit
def _gather(high, low, WARPS: tl.constexpr):
    """Sums [P, 4] under the upper and the lower two digits -> their whole [WARPS, 64] int64."""
    digit = (tl.arange(0, 32 * WARPS) % 4 // 2 * 8)[:, None]
    whole = ((high.to(tl.int64) << 16) + low.to(tl.int64)) << digit.to(tl.int64)
    whole = tl.sum(tl.reshape(whole, (WARPS, 8, 2, 8)), 2)
    return tl.reshape(whole, (WARPS, 64))


@triton.jit
def _add_two(a, b, c, d):
    return a + c, b + d


@triton.jit
def _add_four(a, b, c, d, e, f, g, h):
    return a + e, b + f, c + g, d + h


@triton.jit
def places(COUNT: tl.constexpr, NIBBLES: tl.constexpr):
    """For the first COUNT sums of a program, in their order: which of its columns each is, of 128 or 256."""
    TILES: tl.constexpr = 4 if NIBBLES else 2
    at = tl.arange(0, COUNT)
    tile = at % TILES
    e = at // TILES
    pair = tile % 2
    word = 2 * pair + e // 2 % 2
    byte = 2 * (e // 4 % 2) + e % 2
    if NIBBLES:
        return e // 8 * 32 + word * 8 + 2 * byte + tile // 2
    else:
        return e // 8 * 16 + word * 4 + byte


@triton.jit
def add_codes(
    source, weight, scale, n, lo, count, stride, half, block, up,
    STEP: tl.constexpr, WARPS: tl.constexpr, SWIGLU: tl.constexpr, NIBBLES: tl.constexpr, LISTED: tl.constexpr,
    DTYPE: tl.constexpr, ALIGNED: tl.constexpr, WIDE: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Entries times a piece of 128 bytes of `count` rows -> int64 sums [128] (or [256]) in the order of `places`.

    stride and half count words of 4 bytes. SWIGLU: lanes g < 4 take gate's piece of 64 bytes, the others up's, `half`
    further. scale: of 4-bit codes, [groups, n].
    """
    PROGRAM: tl.constexpr = 32 * WARPS
    ROWS: tl.constexpr = 4 * WARPS
    p = tl.arange(0, PROGRAM)
    g = p % 32 // 4
    if SWIGLU:
        word = block * 16 + g % 4 * 4
        ends = half
        behind = g // 4 * half
    else:
        word = block * 32 + g * 4
        ends = stride
        behind = g * 0
    own = word + behind
    if ALIGNED:
        own = tl.multiple_of(own, 4)
        ends = tl.multiple_of(ends, 4)
    four = tl.arange(0, 4)[None, :]
    cells = weight.to(tl.pointer_type(tl.int32)) + (own[:, None] + four)
    fit = word[:, None] + four < ends
    scales = scale
    if NIBBLES:
        scales = scale + tl.minimum(own // 8, (stride - 1) // 8).to(tl.int64) * n
    place = g % 4 * 4
    selector = 0x4444 - (4 << place)
    select_low = selector + (g // 4 << place)
    select_high = select_low + (2 << place)
    TILES: tl.constexpr = 4 if NIBBLES else 2
    sums = ()
    for _ in tl.static_range(2 * TILES):
        sums = sums + (tl.zeros((PROGRAM, 4), tl.int32),)
    TURN: tl.constexpr = STEP * ROWS
    this = _load_items(source, 0, count, lo, STEP, ROWS, PROGRAM, LISTED, DTYPE)
    second = _load_items(source, TURN, count, lo, STEP, ROWS, PROGRAM, LISTED, DTYPE)
    loaded = _load_words(cells, fit, scales, this, stride, STEP, NIBBLES, ALIGNED, WIDE)
    for first in tl.range(0, count, 2 * TURN, num_stages=1):
        third = _load_items(source, first + 2 * TURN, count, lo, STEP, ROWS, PROGRAM, LISTED, DTYPE)
        behind_it = _load_words(cells, fit, scales, second, stride, STEP, NIBBLES, ALIGNED, WIDE)
        sums = _add(sums, this, loaded, up, stride, select_high, select_low, STEP, NIBBLES, INTERPRETED)
        fourth = _load_items(source, first + 3 * TURN, count, lo, STEP, ROWS, PROGRAM, LISTED, DTYPE)
        loaded = _load_words(cells, fit, scales, third, stride, STEP, NIBBLES, ALIGNED, WIDE)
        sums = _add(sums, second, behind_it, up, stride, select_high, select_low, STEP, NIBBLES, INTERPRETED)
        this = third
        second = fourth
    if NIBBLES:
        a, b, c, d = tl.reduce(
            (
                _gather(sums[0], sums[1], WARPS), _gather(sums[2], sums[3], WARPS),
                _gather(sums[4], sums[5], WARPS), _gather(sums[6], sums[7], WARPS),
            ), 0, _add_four,
        )  # fmt: skip
        # tile = 2 half + pair: the last dimension of a join counts first.
        return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (256,))
    else:
        a, b = tl.reduce((_gather(sums[0], sums[1], WARPS), _gather(sums[2], sums[3], WARPS)), 0, _add_two)
        return tl.reshape(tl.join(a, b), (128,))


@triton.jit
def add_codes_plainly(
    source, weight, scale, n, lo, count, stride, half, block, up,
    SWIGLU: tl.constexpr, NIBBLES: tl.constexpr, LISTED: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """`add_codes` row by row and code by code, as Triton's interpreter can run it: the same whole numbers."""
    PIECE: tl.constexpr = 256 if NIBBLES else 128
    ROWS: tl.constexpr = 64
    place = places(PIECE, NIBBLES)
    codes_a_word: tl.constexpr = 8 if NIBBLES else 4
    if SWIGLU:
        column = block * (PIECE // 2) + place % (PIECE // 2)
        fit = column < half * codes_a_word
        column += place // (PIECE // 2) * half * codes_a_word
    else:
        column = block * PIECE + place
        fit = column < stride * codes_a_word
    total = tl.zeros((PIECE,), tl.int64)
    for first in tl.range(0, count, ROWS, num_stages=1):
        at = first + tl.arange(0, ROWS)
        item = tl.load(source + at, mask=at < count, other=0)
        row = item >> 16 if LISTED else lo + at
        entry = low_half(item, DTYPE) if LISTED else item.to(tl.float32)
        mask = (at < count)[:, None] & fit[None, :]
        if NIBBLES:
            cell = weight + row.to(tl.int64)[:, None] * (stride * 4) + column[None, :] // 2
            code = ((tl.load(cell, mask=mask, other=0).to(tl.int32) >> (column % 2 * 4)[None, :]) & 15) - 8
            own = tl.load(scale + (column // 64).to(tl.int64)[None, :] * n + row[:, None], mask=mask, other=0.0)
            v = to_whole(entry[:, None] * own.to(tl.float32) * up, True)
            total += tl.sum(16 * code.to(tl.int64) * v.to(tl.int64), 0)
        else:
            code = tl.load(weight + row.to(tl.int64)[:, None] * (stride * 4) + column[None, :], mask=mask, other=0)
            total += tl.sum(code.to(tl.int64) * to_whole(entry * up, True).to(tl.int64)[:, None], 0)
    return total
