"""PTX of the place where the warps of a program of codes meet: their sums, as codes.py leaves them in lanes, added.

Triton's own reduction over warps writes each warp's sums side by side, so that all lanes want one bank of shared
memory: 1.1 ns a column and warp, 2 to 5 us a launch. Here every warp writes a line of all outputs in their order, and
each thread adds one column of them.

A lane (g, t) has, of each product, four sums under low bytes and four under high ones; lanes t < 2 those of b0 and b2,
lanes t + 2 those of b1 and 64 of the same outputs (codes.py). The two share out the products: each sends the other half
of its own and keeps one half, whole: b0 + 2^8 b1 + 2^16 (b2 - 64), int64.
"""

from __future__ import annotations

from functools import cache


def _kept(nibbles: bool) -> list[tuple[int, int, int]]:
    """(product of lanes t < 2, of lanes t >= 2, register) of what a lane keeps, in the order of outputs."""
    if nibbles:  # groups 0, 1 or 2, 3; outputs 4 (t % 2) to 4 (t % 2) + 3 of a word
        return [(group, 2 + group, register) for group in (0, 1) for register in (0, 2, 1, 3)]
    return [(0, 1, register) for register in range(4)]  # words 0, 1 or 2, 3; outputs 2 (t % 2) and the next of a word


@cache
def meeting(nibbles: bool, warps: int, swiglu: bool) -> str:
    """Registers 0 and 2 of four int64: sums of outputs (2) tid and (2) tid + 1, or of gate tid and up tid."""
    piece = 256 if nibbles else 128
    threads = 32 * warps
    lines = [
        ".reg .pred far; .reg .b32 tid, t, g, at, own, low, high, send, met; .reg .b64 whole, whole1, more;",
        f".shared .align 16 .b8 larosa_meeting[{8 * piece * warps}];",
        "mov.u32 tid, %tid.x; and.b32 t, tid, 3; and.b32 g, tid, 31; shr.u32 g, g, 2; setp.ge.u32 far, t, 2;",
        "mov.u32 at, larosa_meeting; shr.u32 own, tid, 5;",
        f"mad.lo.u32 at, own, {8 * piece}, at;",
    ]
    # Where a lane's outputs begin.
    if nibbles:
        lines += ["mad.lo.u32 at, g, 64, at;", "and.b32 own, t, 1; mad.lo.u32 at, own, 32, at;"]
        lines += ["shr.u32 own, t, 1; mad.lo.u32 at, own, 1024, at;"]
        offsets = [512 * (i // 4) + 8 * (i % 4) for i in range(8)]
    else:
        lines += ["mad.lo.u32 at, g, 128, at;", "and.b32 own, t, 1; mad.lo.u32 at, own, 16, at;"]
        lines += ["shr.u32 own, t, 1; mad.lo.u32 at, own, 64, at;"]
        offsets = [32 * (i // 2) + 8 * (i % 2) for i in range(4)]

    def register(product: int, low: bool, which: int) -> str:
        return f"${4 + 8 * product + 4 * low + which}"

    for number, ((near, far, which), offset) in enumerate(zip(_kept(nibbles), offsets, strict=True)):
        whole = "whole1" if number % 2 else "whole"
        for name, low in (("low", True), ("high", False)):
            mine, other = register(near, low, which), register(far, low, which)
            lines += [
                f"selp.b32 send, {mine}, {other}, far; selp.b32 {name}, {other}, {mine}, far;",
                "shfl.sync.bfly.b32 met, send, 2, 31, 0xffffffff;",
                f"selp.b32 own, met, {name}, far; selp.b32 send, {name}, met, far;",
            ]
            if low:
                lines += [f"cvt.s64.s32 {whole}, own; mad.wide.s32 {whole}, send, 256, {whole};"]
            else:
                lines += [f"sub.s32 own, own, send; mad.wide.s32 {whole}, own, 65536, {whole};"]
        if number % 2:
            lines += [f"st.shared.v2.b64 [at+{offset - 8}], {{whole, whole1}};"]
    lines += ["bar.sync 0;", "mov.u32 at, larosa_meeting;"]
    each = 2 if piece > threads and not swiglu else 1
    columns = piece // 2 if swiglu else piece // each
    lines += [f"mov.b64 ${number}, 0;" for number in range(4)]
    if columns < threads:
        lines += [f"setp.ge.u32 far, tid, {columns}; @far bra larosa_met;"]
    lines += [f"mad.lo.u32 at, tid, {8 * each}, at;"]
    second = 8 * (piece // 2) if swiglu else 8
    for number, start in enumerate((0, second) if swiglu or each == 2 else (0,)):
        lines += [f"ld.shared.b64 whole, [at+{start}];"]
        for warp in range(1, warps):
            lines += [f"ld.shared.b64 more, [at+{start + 8 * piece * warp}]; add.s64 whole, whole, more;"]
        lines += [f"mov.b64 ${2 * number}, whole;"]
    if columns < threads:
        lines += ["larosa_met:"]
    return "{ " + " ".join(lines) + " }"


def operands(nibbles: bool) -> str:
    """The constraints of `meeting`: sums under high and low bytes of each product, four registers each."""
    return "=l,=l,=l,=l" + ",r" * (32 if nibbles else 16)
