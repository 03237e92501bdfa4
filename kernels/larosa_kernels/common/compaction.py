"""The list of kept rows: device functions of the sparse product.

An item is an int32: the row, below 2^15 (search_config.MAX_WIDTH), in its high half, the 16 bits of the entry in its
low half. Zeros are not listed, so an item is never 0. A warp owns a run of neighbouring words of x, two entries each,
32 of them, one a lane, in each of its turns. The list has the warps in order; a warp's items come by two turns,
half its turns from each other: low halves of both, then high halves of both, lane by lane. So what a warp stores
at once lies side by side, in 2 or 3 sectors of 32 bytes where half is kept. The order depends on what is kept and the
launch shape only.

Sets of a lane's entries are int32 of up to 16 turns: bit `_places` for the low half of a turn's word, 16 further for
the high half. Of a warp, all that others need to know is how many entries it has above the limit and how many at it:
the warps meet once.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def word_indices(COUNT: tl.constexpr, THREADS: tl.constexpr):
    """0 .. COUNT - 1 as threads hold them: a warp a run, 32 neighbours a turn.

    The hint keeps loads from being 16 bytes wide.
    """
    at = tl.arange(0, COUNT)
    of_warp = (at % THREADS) // 32 * (COUNT // THREADS * 32)
    return tl.max_contiguous(of_warp + at // THREADS * 32 + at % 32, 1)


@triton.jit
def _above_and_at(words, limit, INFINITY: tl.constexpr, PACKED: tl.constexpr):
    """Which halves are larger than the limit, which equal it: masks of 0xFFFF. words: signs cleared."""
    pattern = tl.minimum(tl.maximum(limit, 0), INFINITY) * 0x10001
    if PACKED == "bf16":
        above = tl.inline_asm_elementwise(
            "set.gtu.u32.bf16x2 $0, $1, $2;", "=r,r,r", [words, pattern], dtype=tl.int32, is_pure=True, pack=1
        )
        equal = tl.inline_asm_elementwise(
            "set.eq.u32.bf16x2 $0, $1, $2;", "=r,r,r", [words, pattern], dtype=tl.int32, is_pure=True, pack=1
        )
    elif PACKED == "fp16":
        above = tl.inline_asm_elementwise(
            "set.gtu.u32.f16x2 $0, $1, $2;", "=r,r,r", [words, pattern], dtype=tl.int32, is_pure=True, pack=1
        )
        equal = tl.inline_asm_elementwise(
            "set.eq.u32.f16x2 $0, $1, $2;", "=r,r,r", [words, pattern], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        # Bit 15 of each half, set by -0x7FFF8000 (0x80008000), survives iff the half is > (below >=) the limit.
        ones = (((words | -0x7FFF8000) - pattern - 0x10001) >> 15) & 0x00010001
        above = (ones << 16) - ones
        ones = (((words | -0x7FFF8000) - pattern) >> 15) & 0x00010001
        equal = ((ones << 16) - ones) ^ above
    return above, equal


@triton.jit
def _spread(low_turns, TURNS: tl.constexpr):
    """Bit t of each half -> bit `_places` of turn t: the second half of the turns begins at bit 8."""
    APART: tl.constexpr = max(TURNS // 2, 1)
    FIRST: tl.constexpr = (2**APART - 1) * 0x10001
    return (low_turns & FIRST) | (((low_turns >> APART) & FIRST) << 8)


@triton.jit
def _places(TURNS: tl.constexpr):
    """[TURNS]: a turn's bit."""
    APART: tl.constexpr = max(TURNS // 2, 1)
    turn = tl.arange(0, TURNS)
    return turn % APART + turn // APART * 8


@triton.jit
def _gathered(masks, TURNS: tl.constexpr, THREADS: tl.constexpr):
    """Masks of halves [words] -> sets [chunks, warps, 32]."""
    CHUNKS: tl.constexpr = masks.shape[0] // THREADS // TURNS
    bit = 0x10001 << _places(TURNS)
    masks = tl.reshape(masks, (CHUNKS, TURNS, THREADS // 32, 32))
    return tl.sum(masks & bit[None, :, None, None], 1)


@triton.jit
def _size(sets, PACKED: tl.constexpr):
    """Members of each set."""
    if PACKED != "none":
        count = tl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [sets], dtype=tl.int32, is_pure=True, pack=1)
    else:
        bits = sets.to(tl.uint32, bitcast=True)
        bits = bits - ((bits >> 1) & 0x55555555)
        bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
        bits = (bits + (bits >> 4)) & 0x0F0F0F0F
        count = ((bits * 0x01010101) >> 24).to(tl.int32, bitcast=True)
    return count


@triton.jit
def _in_front(of_warp):
    """int32 or int64 [warps] -> (sums of the warps in front [warps], sum of all). The warps meet once, lanes add."""
    WARPS: tl.constexpr = of_warp.shape[0]
    COPIES: tl.constexpr = 32 // WARPS
    theirs = of_warp[None, :]
    # 32 numbers a warp, so that, as Triton lays the tensor out, its own lanes add them.
    in_front = tl.arange(0, WARPS)[None, None, :] < tl.arange(0, WARPS)[:, None, None]
    once = tl.arange(0, COPIES)[None, :, None] == 0
    front = tl.sum(tl.reshape(tl.where(in_front & once, theirs[:, None, :], 0), (WARPS, 32)), 1)
    return front, tl.sum(tl.sum(theirs, 1), 0)


@triton.jit
def _passed(left, room, turn, BITS: tl.constexpr, PACKED: tl.constexpr):
    """BITS turns further on if all ties of the next ones stay and room is left."""
    MASK: tl.constexpr = (2**BITS - 1) * 0x10001
    some = tl.sum(_size(left & MASK, PACKED), 2)
    further = some < room
    room = tl.where(further, room - some, room)
    turn = tl.where(further, turn + BITS, turn)
    return tl.where(further[:, :, None], left >> BITS, left), room, turn


@triton.jit
def _first_ties(ties, room, TURNS: tl.constexpr, PACKED: tl.constexpr):
    """The set of those entries at which at most `room` ties of the warp's chunk are reached, by turn, lane, half.

    ties: [chunks, warps, 32], room: [chunks, warps]. Only what the result says of ties counts.
    """
    left = ties
    turn = tl.zeros_like(room)
    if TURNS > 1:
        left, room, turn = _passed(left, room, turn, 8, PACKED)
    if TURNS > 8:
        left, room, turn = _passed(left, room, turn, 4, PACKED)
    if TURNS > 4:
        left, room, turn = _passed(left, room, turn, 2, PACKED)
    if TURNS > 2:
        left, room, turn = _passed(left, room, turn, 1, PACKED)
    low = left & 1
    own = low + ((left >> 16) & 1)
    before = tl.cumsum(own, 2) - own
    here = (before < room[:, :, None]).to(tl.int32) | ((before + low < room[:, :, None]).to(tl.int32) << 16)
    return (((1 << turn) - 1) * 0x10001)[:, :, None] | (here << turn[:, :, None])


@triton.jit
def _put(line, at, item, kept):
    """Items to a line, in memory where it is a pointer, else in shared memory."""
    if line.dtype.is_ptr():
        tl.store(line + at, item, mask=kept)
    else:
        tl.inline_asm_elementwise(
            "{ .reg .pred kept; setp.ne.u32 kept, $3, 0; @kept st.shared.b32 [$1], $2; mov.u32 $0, 0; }", "=r,r,r,r",
            [line + 4 * at, item, kept.to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def _store_items(line, words, i, kept, start, TURNS: tl.constexpr, THREADS: tl.constexpr):
    """Items of the set kept [chunks, warps, 32] to line, see `_put`, a warp's from start [warps] on."""
    CHUNKS: tl.constexpr = kept.shape[0]
    WARPS: tl.constexpr = THREADS // 32
    APART: tl.constexpr = max(TURNS // 2, 1)
    PAIR: tl.constexpr = TURNS // APART
    # Bytes: low halves of a turn and of the one APART turns further, then high halves of both.
    own = (kept[:, None, :, :] >> tl.arange(0, APART)[None, :, None, None]) & 0x01010101
    of_turns = tl.sum(own, 3, keep_dims=True)
    before = tl.cumsum(own, 3) - own + of_turns * 0x01010100
    # For every lane, not once a warp: so no layout changes on the way.
    both = tl.broadcast_to(((of_turns * 0x01010101) >> 24) & 0xFF, (CHUNKS, APART, WARPS, 32))
    both = tl.reshape(both, (CHUNKS * APART, WARPS, 32))
    begin = tl.reshape(tl.cumsum(both, 0) - both + start[None, :, None], (CHUNKS, 1, APART, WARPS, 32))
    byte = (8 * tl.arange(0, PAIR))[None, :, None, None, None]
    before = before[:, None, :, :, :]
    low_at = tl.reshape(begin + ((before >> byte) & 0xFF), words.shape)
    high_at = tl.reshape(begin + ((before >> (byte + 16)) & 0xFF), words.shape)
    bit = (1 << _places(TURNS))[None, :, None, None]
    low_kept = tl.reshape((kept[:, None, :, :] & bit) != 0, words.shape)
    high_kept = tl.reshape((kept[:, None, :, :] & (bit << 16)) != 0, words.shape)
    _put(line, low_at, (2 * i << 16) | (words & 0xFFFF), low_kept)
    _put(line, high_at, ((2 * i + 1) << 16) | ((words >> 16) & 0xFFFF), high_kept)


@triton.jit
def _alike(count, PACKED: tl.constexpr):
    """A count that all lanes share, which the assembler learns this way: else it walks the list with care."""
    if PACKED != "none":
        count = tl.inline_asm_elementwise(
            "redux.sync.max.s32 $0, $1, 0xffffffff;", "=r,r", [count], dtype=tl.int32, is_pure=False, pack=1
        )
    return count


@triton.jit
def list_limited(
    line, words, i, limit, last_index, INFINITY: tl.constexpr, PACKED: tl.constexpr, THREADS: tl.constexpr
):
    """Items of what the pair keeps to line [n] int32 -> their count. words: [BLOCK / 2], at i of `word_indices`."""
    TURNS: tl.constexpr = min(words.shape[0] // THREADS, 16)
    CHUNKS: tl.constexpr = words.shape[0] // THREADS // TURNS
    WARPS: tl.constexpr = THREADS // 32
    above, equal = _above_and_at(words & 0x7FFF7FFF, limit, INFINITY, PACKED)
    chunk = (tl.arange(0, WARPS)[None, :] * CHUNKS + tl.arange(0, CHUNKS)[:, None]) * TURNS
    behind = tl.where(limit > 0, last_index, -1) - 2 * (32 * chunk[:, :, None] + tl.arange(0, 32)[None, None, :])
    low = tl.minimum(tl.maximum((behind >> 6) + 1, 0), TURNS)
    high = tl.minimum(tl.maximum(((behind - 1) >> 6) + 1, 0), TURNS)
    ties = _spread(((1 << low) - 1) | (((1 << high) - 1) << 16), TURNS)
    kept = _gathered(above, TURNS, THREADS) | (_gathered(equal, TURNS, THREADS) & ties)
    front, count = _in_front(tl.sum(tl.sum(_size(kept, PACKED), 0), 1))
    _store_items(line, words, i, kept, front, TURNS, THREADS)
    return _alike(count, PACKED)


@triton.jit
def no_ties(THREADS: tl.constexpr):
    """Nothing lies in front of the words of a list."""
    return tl.zeros((THREADS // 32,), tl.int32)


@triton.jit
def ties_before(words, i, limit, end, INFINITY: tl.constexpr, PACKED: tl.constexpr, THREADS: tl.constexpr):
    """Of each warp, how many of its entries before `end`, an even number, equal the limit; words at i, [BLOCK / 2]."""
    _, equal = _above_and_at(words & 0x7FFF7FFF, limit, INFINITY, PACKED)
    ties = _size(tl.where(2 * i < end, equal & 0x10001, 0), PACKED)
    return tl.sum(tl.reshape(tl.sum(tl.reshape(ties, (words.shape[0] // THREADS, THREADS)), 0), (THREADS // 32, 32)), 1)


@triton.jit
def list_largest(
    line, words, i, limit, room, before, INFINITY: tl.constexpr, PACKED: tl.constexpr, THREADS: tl.constexpr
):
    """The same of the entries larger than the limit and the first `room` equal to it, unless they are zeros.

    before: of ties in front of all words here, which take up room, what each warp has found, see `ties_before`.
    """
    TURNS: tl.constexpr = min(words.shape[0] // THREADS, 16)
    larger, equal = _above_and_at(words & 0x7FFF7FFF, limit, INFINITY, PACKED)
    larger = _gathered(larger, TURNS, THREADS)
    equal = _gathered(equal, TURNS, THREADS)
    sizes = _size(larger, PACKED) + (_size(equal, PACKED) << 16)
    of_warp = tl.sum(tl.sum(sizes, 0), 1).to(tl.uint32, bitcast=True).to(tl.int64) | (before.to(tl.int64) << 32)
    front, found = _in_front(of_warp)
    room = tl.where(limit > 0, tl.maximum(room - (found >> 32).to(tl.int32), 0), 0)
    front = front.to(tl.int32)
    found = found.to(tl.int32)
    ties_front = (front >> 16) & 0xFFFF
    left = room - ties_front[None, :]
    if equal.shape[0] > 1:
        ties = tl.broadcast_to(tl.sum(_size(equal, PACKED), 2, keep_dims=True), equal.shape)
        left -= tl.max(tl.cumsum(ties, 0) - ties, 2)
    kept = larger | (equal & _first_ties(equal, left, TURNS, PACKED))
    start = (front & 0xFFFF) + tl.minimum(ties_front, room)
    _store_items(line, words, i, kept, start, TURNS, THREADS)
    ties = tl.minimum(room, (found >> 16) & 0xFFFF)
    return _alike((found & 0xFFFF) + ties, PACKED)
