"""PTX for the k-th largest magnitude by a histogram in shared memory, around a calibrated search range; see README.md.

The warps meet once, where the search of common/topk_search.py has them meet every round. Compute capability 9.0 on.
"""

from __future__ import annotations

from functools import cache

WINDOW = 256
"""Counters, one per bit pattern: a factor of 4 between the first and the last in bf16."""
_IDLE = 4 * WINDOW
"""Offset of a counter per lane for what lies outside: a branch around an addition costs more than the addition."""
_WARPS = _IDLE + 128
"""Offset of what each of up to 16 warps counted above the window, and of its largest pattern."""
_CELLS = _WARPS + 128
"""Offset of each warp's result, for its own lanes."""


def room(warps: int) -> int:
    """Bytes of shared memory, from its beginning."""
    return _CELLS + 16 * warps


def cleared() -> str:
    """PTX that clears the counters for all threads to see."""
    return (
        "{ .reg .pred some; .reg .b32 tid, at, none; mov.u32 tid, %tid.x; mov.b32 none, 0; mov.u32 at, larosa_shared; "
        f"mad.lo.u32 at, tid, 16, at; setp.lt.u32 some, tid, {WINDOW // 4}; "
        "@some st.shared.v4.b32 [at], {none, none, none, none}; bar.sync 0; }"
    )


@cache
def counted(words: int, warps: int, bf16: bool) -> str:
    """PTX that counts a thread's words and leaves what `FOUND` reads in shared memory.

    Operands: $0 to $(words - 1) out, zeros; the next `words` operands, the words, two patterns with signs each; then
    the window's first pattern in the high half and k in the low half.
    """
    kind = "bf16x2" if bf16 else "f16x2"
    lines = [
        ".reg .pred in, out, here; .reg .b32 tid, lane, at, low, high, base, k, pair, over, count, most, word, own;",
        ".reg .b32 sum, upto, front, bin, reached, above, votes, from, shared, idle; .reg .b32 bins<8>;",
        f"mov.u32 tid, %tid.x; and.b32 lane, tid, 31; shr.u32 base, ${2 * words}, 16; and.b32 k, ${2 * words}, 0xffff;",
        f"mul.lo.u32 pair, base, 0x10001; add.u32 over, base, {WINDOW}; mul.lo.u32 over, over, 0x10001;",
        "mov.b32 count, 0; mov.b32 most, 0; mov.u32 shared, larosa_shared;",
        f"mad.lo.u32 idle, lane, 4, shared; add.u32 idle, idle, {_IDLE};",
    ]
    for i in range(words):
        lines += [
            f"and.b32 word, ${words + i}, 0x7fff7fff; max.u16x2 most, most, word;",
            f"set.geu.u32.{kind} low, word, over; add.u32 count, count, low;",
            # Bit 15 of each half is set, so that no half borrows; afterwards a half is within the window iff below it.
            "or.b32 word, word, 0x80008000; sub.u32 word, word, pair; xor.b32 word, word, 0x80008000;",
            "and.b32 low, word, 0xffff; shr.u32 high, word, 16;",
        ]
        for half in ("low", "high"):
            lines += [f"setp.lt.u32 in, {half}, {WINDOW}; mad.lo.u32 at, {half}, 4, shared;"]
            lines += ["selp.b32 at, at, idle, in; red.shared.add.u32 [at], 1;"]
    lines += [
        # L low and H high ones sum to 65536 (L - H) - L.
        "sub.u32 low, 0, count; and.b32 low, low, 0xffff; add.u32 high, count, low; shr.s32 high, high, 16;",
        "shl.b32 low, low, 1; sub.u32 count, low, high; redux.sync.add.s32 count, count, 0xffffffff;",
        "and.b32 low, most, 0xffff; shr.u32 high, most, 16; max.u32 most, low, high;",
        "redux.sync.max.u32 most, most, 0xffffffff; setp.eq.u32 in, lane, 0;",
        "shr.u32 own, tid, 5; mad.lo.u32 at, own, 8, shared;",
        f"@in st.shared.v2.b32 [at+{_WARPS}], {{count, most}}; bar.sync 0;",
        f"setp.lt.u32 out, lane, {warps}; mad.lo.u32 at, lane, 8, shared; mov.b32 above, 0; mov.b32 most, 0;",
        f"@out ld.shared.v2.b32 {{above, most}}, [at+{_WARPS}]; mad.lo.u32 at, lane, {WINDOW // 8}, shared;",
        "redux.sync.add.s32 above, above, 0xffffffff; redux.sync.max.u32 most, most, 0xffffffff;",
        "ld.shared.v4.b32 {bins0, bins1, bins2, bins3}, [at]; ld.shared.v4.b32 {bins4, bins5, bins6, bins7}, [at+16];",
        "mov.b32 sum, bins0;",
        *(f"add.u32 sum, sum, bins{i};" for i in range(1, 8)),
        "mov.b32 upto, sum;",
    ]
    for step in (1, 2, 4, 8, 16):
        lines += [f"shfl.sync.down.b32 low|in, upto, {step}, 31, 0xffffffff; @in add.u32 upto, upto, low;"]
    lines += [
        "add.u32 upto, upto, above; sub.u32 front, upto, sum;",
        "setp.lt.u32 in, front, k; setp.ge.u32 out, upto, k; and.pred here, in, out;",
        "vote.sync.ballot.b32 votes, here, 0xffffffff; bfind.u32 from, votes;",
        "mov.b32 bin, 0; mov.b32 reached, 0; mov.b32 above, 0;",
    ]
    for i in reversed(range(8)):  # the last one in front of which k is not reached
        lines += [f"setp.lt.u32 in, front, k; @in mov.b32 bin, {i}; @in mov.b32 above, front;"]
        lines += [f"add.u32 front, front, bins{i}; @in mov.b32 reached, front;"]
    lines += [
        "mad.lo.u32 bin, lane, 8, bin; add.u32 bin, bin, base;",
        *(f"shfl.sync.idx.b32 {name}, {name}, from, 31, 0xffffffff;" for name in ("bin", "reached", "above")),
        "setp.eq.u32 out, votes, 0; @out mov.b32 bin, 0xffffffff;",
        "mad.lo.u32 at, own, 16, shared; setp.eq.u32 in, lane, 0;",
        f"@in st.shared.v4.b32 [at+{_CELLS}], {{bin, reached, above, most}}; bar.warp.sync 0xffffffff;",
        *(f"mov.b32 ${i}, 0;" for i in range(words)),
    ]
    return "{ " + " ".join(lines) + " }"


def operands(words: int) -> str:
    """The constraints of `counted`."""
    return ",".join(["=r"] * words + ["r"] * (2 * words))


FOUND = (
    "{ .reg .b32 at, shared; mov.u32 at, %tid.x; shr.u32 at, at, 5; mov.u32 shared, larosa_shared; "
    f"mad.lo.u32 at, at, 16, shared; ld.shared.v4.b32 {{$0, $1, $2, $3}}, [at+{_CELLS}]; }}"
)
"""PTX that reads the result: threshold, or -1 outside of the window; how many reach and exceed it; the largest."""
