"""The list of selected rows that both sparse products walk: device functions. README.md draws its layout and order.

Sets of a lane's entries are int32 of up to 16 turns, a bit per entry, so that the warps meet once.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def word_indices(COUNT: tl.constexpr, THREADS: tl.constexpr):
    """0 .. COUNT - 1 as threads hold them: a run per warp, 32 neighbours per turn.

    The hint keeps loads from being 16 bytes wide.
    """
    index = tl.arange(0, COUNT)
    of_warp = (index % THREADS) // 32 * (COUNT // THREADS * 32)
    return tl.max_contiguous(of_warp + index // THREADS * 32 + index % 32, 1)


@triton.jit
def _above_and_at(words, threshold, INFINITY: tl.constexpr, PACKED: tl.constexpr):
    """Which halves are larger than the threshold, which equal it: masks of 0xFFFF. words: signs cleared."""
    pattern = tl.minimum(tl.maximum(threshold, 0), INFINITY) * 0x10001
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
        # Bit 15 of each half, set by -0x7FFF8000 (0x80008000), survives iff the half is > (below >=) the threshold.
        ones = (((words | -0x7FFF8000) - pattern - 0x10001) >> 15) & 0x00010001
        above = (ones << 16) - ones
        ones = (((words | -0x7FFF8000) - pattern) >> 15) & 0x00010001
        equal = ((ones << 16) - ones) ^ above
    return above, equal


@triton.jit
def _spread(low_turns, TURNS: tl.constexpr):
    """Bit t of each half -> bit `_turn_bits` of turn t: the second half of the turns begins at bit 8."""
    APART: tl.constexpr = max(TURNS // 2, 1)
    FIRST: tl.constexpr = (2**APART - 1) * 0x10001
    return (low_turns & FIRST) | (((low_turns >> APART) & FIRST) << 8)


@triton.jit
def _turn_bits(TURNS: tl.constexpr):
    """[TURNS]: a turn's bit."""
    APART: tl.constexpr = max(TURNS // 2, 1)
    turn = tl.arange(0, TURNS)
    return turn % APART + turn // APART * 8


@triton.jit
def _gather_sets(masks, TURNS: tl.constexpr, THREADS: tl.constexpr):
    """Masks of halves [words] -> sets [chunks, warps, 32]."""
    CHUNKS: tl.constexpr = masks.shape[0] // THREADS // TURNS
    bit = 0x10001 << _turn_bits(TURNS)
    masks = tl.reshape(masks, (CHUNKS, TURNS, THREADS // 32, 32))
    return tl.sum(masks & bit[None, :, None, None], 1)


@triton.jit
def _popcount(sets, PACKED: tl.constexpr):
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
def _prefix_over_warps(of_warp):
    """int32 or int64 [warps] -> (exclusive prefix sums [warps], sum of all). The warps meet once, lanes add."""
    WARPS: tl.constexpr = of_warp.shape[0]
    COPIES: tl.constexpr = 32 // WARPS
    values = of_warp[None, :]
    # 32 numbers per warp, so that, as Triton lays the tensor out, the warp's own lanes add them.
    in_front = tl.arange(0, WARPS)[None, None, :] < tl.arange(0, WARPS)[:, None, None]
    once = tl.arange(0, COPIES)[None, :, None] == 0
    front = tl.sum(tl.reshape(tl.where(in_front & once, values[:, None, :], 0), (WARPS, 32)), 1)
    return front, tl.sum(tl.sum(values, 1), 0)


@triton.jit
def _skip_turns(left, room, turn, BITS: tl.constexpr, PACKED: tl.constexpr):
    """(ties left, room, turn) BITS turns further, where all ties of those turns are selected and room is left."""
    MASK: tl.constexpr = (2**BITS - 1) * 0x10001
    ties = tl.sum(_popcount(left & MASK, PACKED), 2)
    further = ties < room
    room = tl.where(further, room - ties, room)
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
        left, room, turn = _skip_turns(left, room, turn, 8, PACKED)
    if TURNS > 8:
        left, room, turn = _skip_turns(left, room, turn, 4, PACKED)
    if TURNS > 4:
        left, room, turn = _skip_turns(left, room, turn, 2, PACKED)
    if TURNS > 2:
        left, room, turn = _skip_turns(left, room, turn, 1, PACKED)
    low = left & 1
    in_turn = low + ((left >> 16) & 1)
    before = tl.cumsum(in_turn, 2) - in_turn
    here = (before < room[:, :, None]).to(tl.int32) | ((before + low < room[:, :, None]).to(tl.int32) << 16)
    return (((1 << turn) - 1) * 0x10001)[:, :, None] | (here << turn[:, :, None])


@triton.jit
def _store_masked(p_list, o_list, item, selected):
    """Items to the list, in global memory where p_list is a pointer, else in shared memory."""
    if p_list.dtype.is_ptr():
        tl.store(p_list + o_list, item, mask=selected)
    else:
        tl.inline_asm_elementwise(
            "{ .reg .pred kept; setp.ne.u32 kept, $3, 0; @kept st.shared.b32 [$1], $2; mov.u32 $0, 0; }", "=r,r,r,r",
            [p_list + 4 * o_list, item, selected.to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def _store_items(p_list, words, o_word, selected, start, TURNS: tl.constexpr, THREADS: tl.constexpr):
    """Items of the set `selected` [chunks, warps, 32] to the list, a warp's from start [warps] on."""
    CHUNKS: tl.constexpr = selected.shape[0]
    WARPS: tl.constexpr = THREADS // 32
    APART: tl.constexpr = max(TURNS // 2, 1)
    PAIR: tl.constexpr = TURNS // APART
    # Bytes: low halves of a turn and of the one APART turns further, then high halves of both.
    bytes_ = (selected[:, None, :, :] >> tl.arange(0, APART)[None, :, None, None]) & 0x01010101
    of_turns = tl.sum(bytes_, 3, keep_dims=True)
    before = tl.cumsum(bytes_, 3) - bytes_ + of_turns * 0x01010100
    # For every lane, not once per warp: so no layout changes on the way.
    both = tl.broadcast_to(((of_turns * 0x01010101) >> 24) & 0xFF, (CHUNKS, APART, WARPS, 32))
    both = tl.reshape(both, (CHUNKS * APART, WARPS, 32))
    begin = tl.reshape(tl.cumsum(both, 0) - both + start[None, :, None], (CHUNKS, 1, APART, WARPS, 32))
    byte = (8 * tl.arange(0, PAIR))[None, :, None, None, None]
    before = before[:, None, :, :, :]
    o_low = tl.reshape(begin + ((before >> byte) & 0xFF), words.shape)
    o_high = tl.reshape(begin + ((before >> (byte + 16)) & 0xFF), words.shape)
    bit = (1 << _turn_bits(TURNS))[None, :, None, None]
    m_low = tl.reshape((selected[:, None, :, :] & bit) != 0, words.shape)
    m_high = tl.reshape((selected[:, None, :, :] & (bit << 16)) != 0, words.shape)
    _store_masked(p_list, o_low, (2 * o_word << 16) | (words & 0xFFFF), m_low)
    _store_masked(p_list, o_high, ((2 * o_word + 1) << 16) | ((words >> 16) & 0xFFFF), m_high)


@triton.jit
def _uniform(count, PACKED: tl.constexpr):
    """A count that is equal in all lanes: the assembler learns it here, else it takes the list's loop to diverge."""
    if PACKED != "none":
        count = tl.inline_asm_elementwise(
            "redux.sync.max.s32 $0, $1, 0xffffffff;", "=r,r", [count], dtype=tl.int32, is_pure=False, pack=1
        )
    return count


@triton.jit
def list_by_bound(
    p_list, words, o_word, threshold, last_index, INFINITY: tl.constexpr, PACKED: tl.constexpr, THREADS: tl.constexpr
):
    """Items of what a selection bound selects to p_list [n] int32 -> their count.

    words: [BLOCK / 2], those at o_word of `word_indices`; what lies behind the vector is zero.
    """
    TURNS: tl.constexpr = min(words.shape[0] // THREADS, 16)
    CHUNKS: tl.constexpr = words.shape[0] // THREADS // TURNS
    WARPS: tl.constexpr = THREADS // 32
    above, equal = _above_and_at(words & 0x7FFF7FFF, threshold, INFINITY, PACKED)
    chunk = (tl.arange(0, WARPS)[None, :] * CHUNKS + tl.arange(0, CHUNKS)[:, None]) * TURNS
    behind = tl.where(threshold > 0, last_index, -1) - 2 * (32 * chunk[:, :, None] + tl.arange(0, 32)[None, None, :])
    low = tl.minimum(tl.maximum((behind >> 6) + 1, 0), TURNS)
    high = tl.minimum(tl.maximum(((behind - 1) >> 6) + 1, 0), TURNS)
    ties = _spread(((1 << low) - 1) | (((1 << high) - 1) << 16), TURNS)
    selected = _gather_sets(above, TURNS, THREADS) | (_gather_sets(equal, TURNS, THREADS) & ties)
    start, count = _prefix_over_warps(tl.sum(tl.sum(_popcount(selected, PACKED), 0), 1))
    _store_items(p_list, words, o_word, selected, start, TURNS, THREADS)
    return _uniform(count, PACKED)


@triton.jit
def no_ties(THREADS: tl.constexpr):
    """`ties_before` of words that begin the vector: none per warp."""
    return tl.zeros((THREADS // 32,), tl.int32)


@triton.jit
def ties_before(words, o_word, threshold, end, INFINITY: tl.constexpr, PACKED: tl.constexpr, THREADS: tl.constexpr):
    """Per warp, how many of its entries in front of `end`, which is even, equal the threshold: int32 [warps]."""
    _, equal = _above_and_at(words & 0x7FFF7FFF, threshold, INFINITY, PACKED)
    ties = _popcount(tl.where(2 * o_word < end, equal & 0x10001, 0), PACKED)
    return tl.sum(tl.reshape(tl.sum(tl.reshape(ties, (words.shape[0] // THREADS, THREADS)), 0), (THREADS // 32, 32)), 1)


@triton.jit
def list_topk(
    p_list, words, o_word, threshold, room, before, INFINITY: tl.constexpr, PACKED: tl.constexpr, THREADS: tl.constexpr
):
    """Items of entries above the threshold and of the first `room` equal to it, unless they are zeros -> their count.

    before: ties in front of all words here, which take up room, counted per warp by `ties_before`.
    """
    TURNS: tl.constexpr = min(words.shape[0] // THREADS, 16)
    larger, equal = _above_and_at(words & 0x7FFF7FFF, threshold, INFINITY, PACKED)
    larger = _gather_sets(larger, TURNS, THREADS)
    equal = _gather_sets(equal, TURNS, THREADS)
    sizes = _popcount(larger, PACKED) + (_popcount(equal, PACKED) << 16)
    of_warp = tl.sum(tl.sum(sizes, 0), 1).to(tl.uint32, bitcast=True).to(tl.int64) | (before.to(tl.int64) << 32)
    front, totals = _prefix_over_warps(of_warp)
    room = tl.where(threshold > 0, tl.maximum(room - (totals >> 32).to(tl.int32), 0), 0)
    front = front.to(tl.int32)
    totals = totals.to(tl.int32)
    ties_front = (front >> 16) & 0xFFFF
    left = room - ties_front[None, :]
    if equal.shape[0] > 1:
        ties = tl.broadcast_to(tl.sum(_popcount(equal, PACKED), 2, keep_dims=True), equal.shape)
        left -= tl.max(tl.cumsum(ties, 0) - ties, 2)
    selected = larger | (equal & _first_ties(equal, left, TURNS, PACKED))
    start = (front & 0xFFFF) + tl.minimum(ties_front, room)
    _store_items(p_list, words, o_word, selected, start, TURNS, THREADS)
    ties = tl.minimum(room, (totals >> 16) & 0xFFFF)
    return _uniform((totals & 0xFFFF) + ties, PACKED)
