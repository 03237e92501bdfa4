"""PTX of a program's product of codes: rows copied ahead, whole numbers multiplied on the tensor cores, warps met.

A warp takes four rows at a time, a `stage`: eight lanes copy the 128 bytes of a row to shared memory, `stages` of them
ahead, without a register in between (`cp.async`). So 32 KiB are under way on a multiprocessor where registers would
hold 8 to 16, and that is what a gather waits for. Lane (g, t) reads what codes.py gives it; two stages make a product.
A copy of no bytes fills with zeros: what lies behind the last row adds nothing.

Then the warps meet. A lane has, of each product, four sums under low bytes and four under high ones; lanes t < 2 those
of b0 and b2, lanes t + 2 those of b1 and 64 of the same outputs. The two share out the products: each sends the other
half of its own and keeps one half, whole: b0 + 2^8 b1 + 2^16 (b2 - 64), int64. Every warp writes a line of all outputs,
in the place of what it had copied; gaps in it keep lanes on different banks. Up to four threads add one output of all
lines. (Triton's own reduction writes each warp's sums side by side, so that all lanes want one bank: 2 to 5 us.)
"""

from __future__ import annotations

from functools import cache

MOST_STAGES = 64
"""Stages of all warps of a program together: with 544 bytes each, static shared memory has room for them."""
_STATIC = 48 << 10
"""Bytes of shared memory that a kernel can have without asking at its launch."""
_WORDS, _SCALES = 512, 32
"""Bytes of a stage of a warp: codes, and four scales for each of four rows."""


def operands() -> str:
    """The constraints of `product`: source, cells, scales, count, lo, stride, up, reach behind two results."""
    return "=l,=l,l,l,l,r,r,r,f,r"


def reserve(bytes_: int) -> str:
    """Shared memory for a program; $0 is where it begins."""
    return f".shared .align 16 .b8 larosa_shared[{bytes_}]; mov.u32 $0, larosa_shared;"


def plan(nibbles: bool, warps: int, most: int, items: int) -> tuple[int, int, int]:
    """(stages of a warp, an even number up to `most`; bytes in front of the list of `items`, 0: none; bytes in all).

    The list of items stays in memory where fewer than four stages a warp would be left beside it.
    """
    most = max(2, min(most, MOST_STAGES // warps))
    for stages in range(most, 2, -2):
        begin = warps * _region(nibbles, stages)
        if items and begin + 4 * items <= _STATIC:
            return stages, begin, begin + 4 * items
    return most, 0, warps * _region(nibbles, most)


def sharers(nibbles: bool, warps: int, swiglu: bool) -> int:
    """Neighbouring threads that add one output (with SwiGLU two, a gate and its up); 0: each thread adds two."""
    columns = (256 if nibbles else 128) // (2 if swiglu else 1)
    return min(4, 32 * warps // columns)


@cache
def product(
    nibbles: bool,
    warps: int,
    stages: int,
    listed: bool,
    bf16: bool,
    swiglu: bool,
    overlap: bool = False,
    begin: int = 0,
) -> str:
    """Of all rows of a program: two int64, the sum of outputs (2) place and (2) place + 1, or of gate and up place.

    Operands: $2 the items (kept.py), or, not `listed`, entries of 16 bits, bf16 or fp16; $3 where the lane's 16 bytes
    of row 0 are; $4 row 0's scales; $5 how many items; $6 the first one's row, not `listed`; $7 bytes a row; $8 what
    entries are multiplied with; $9 16, or 0 where the lane's bytes lie behind the row's end. begin: the
    list is in shared memory, so many bytes behind its begin, and not at $2. overlap: the next launch may fill what is
    free once all rows are read.
    """
    region = _region(nibbles, stages)
    rows = 4 * warps
    lines = [
        ".reg .pred taken, far, first; .reg .b64 line, address, whole, whole1, more, more1;",
        ".reg .b32 tid, lane, t, g, own, part, to, slot, narrow_to, narrow, from, left, rest, row, size, at, list;",
        ".reg .b32 high, low, send, met, a, b, shared;",
        ".reg .b32 select_high, select_low; .reg .b16 half; .reg .f32 entry, factor;",
        f".reg .b32 now<{stages}>, next<{stages}>, word<8>, scale<4>, in_high<8>, in_low<8>, code<4>;",
        f".reg .b32 {', '.join(_sum(p, low, i) for p in _products(nibbles) for low in (0, 1) for i in range(4))};",
        "mov.u32 tid, %tid.x; and.b32 lane, tid, 31; and.b32 t, tid, 3; shr.u32 g, lane, 2;",
        "shr.u32 at, tid, 5; mov.u32 shared, larosa_shared;",
        f"mad.lo.u32 own, at, {region}, shared;",
        # A lane copies part lane % 8 of row lane / 8 and reads part g of row t: both eight lanes on different banks.
        "shr.u32 row, lane, 3; and.b32 part, lane, 7;",
        *_slot("to", "part", "row", "own"),
        *_slot("slot", "g", "t", "own"),
        f"mad.lo.u32 narrow_to, row, 8, own; add.u32 narrow_to, narrow_to, {_WORDS * stages};",
        f"mad.lo.u32 narrow, t, 8, own; add.u32 narrow, narrow, {_WORDS * stages}; shl.b32 from, t, 3;",
        "shl.b32 at, at, 2; sub.s32 rest, $5, at; sub.s32 left, rest, row; add.u32 at, at, row;",
        f"mad.wide.u32 line, at, {4 if listed else 2}, $2;",
        f"mad.lo.u32 list, at, 4, shared; add.u32 list, list, {begin};",
        "add.u32 at, at, $6;",
        "setp.eq.u32 first, part, 0;",
        # Bytes of an entry for column n = g: byte `high` or `low` at k = g % 4, zeros (byte 5) elsewhere.
        "and.b32 a, g, 3; shl.b32 a, a, 2; shr.u32 b, g, 2; shl.b32 low, b, a; shl.b32 b, b, 1;",
        "add.u32 b, b, 2; shl.b32 high, b, a; mov.b32 b, 5; shl.b32 b, b, a; sub.u32 b, 0x5555, b;",
        "add.u32 select_high, b, high; add.u32 select_low, b, low;",
    ]
    for each in _products(nibbles):
        lines += ["".join(f"mov.b32 {_sum(each, low, i)}, 0; " for low in (0, 1) for i in range(4))]
    for stage in range(stages):
        lines += _load_item("now", stage, rows, listed, begin > 0)
    for stage in range(stages):
        lines += _copy("now", stage, 0, rows, nibbles, listed)
        lines += [_hand_out(stage, "now")]
        if stage % 2:
            lines += ["cp.async.commit_group;"]
    for stage in range(stages):
        lines += _load_item("next", stage, rows, listed, begin > 0, ahead=stages)
    lines += ["larosa_loop:"]
    for stage in range(0, stages, 2):
        lines += [f"setp.le.s32 taken, rest, {stage * rows}; @taken bra larosa_done;"]
        lines += [f"cp.async.wait_group {stages // 2 - 1}; bar.warp.sync 0xffffffff;"]
        lines += _multiply(stage, nibbles, bf16)
        lines += ["bar.warp.sync 0xffffffff;"]
        for each in (stage, stage + 1):
            lines += _copy("next", each, stages, rows, nibbles, listed)
            lines += [_hand_out(each, "next")]
            lines += _load_item("next", each, rows, listed, begin > 0, ahead=2 * stages)
        lines += ["cp.async.commit_group;"]
    turn = stages * rows
    lines += [
        f"sub.s32 rest, rest, {turn}; sub.s32 left, left, {turn}; add.u32 at, at, {turn};",
        f"add.u64 line, line, {turn * (4 if listed else 2)}; add.u32 list, list, {4 * turn}; bra larosa_loop;",
        "larosa_done:",
        *(["griddepcontrol.launch_dependents;"] if overlap else []),
        "cp.async.wait_group 0; bar.warp.sync 0xffffffff;",
    ]
    return "{ " + " ".join(lines + _meet(nibbles, warps, swiglu, region)) + " }"


def _region(nibbles: bool, stages: int) -> int:
    """Bytes of shared memory a warp: what it has copied, or its line; half a row of banks more than whole ones."""
    needed = max(_place(255 if nibbles else 127, nibbles) + 8, stages * (_WORDS + _SCALES))
    return -(-(needed - 64) // 128) * 128 + 64


def _place(output: int, nibbles: bool) -> int:
    """Where a line has an output."""
    return 8 * output + (output // 128 * 16 if nibbles else output // 16 * 32)


def _products(nibbles: bool) -> range:
    return range(4 if nibbles else 2)


def _sum(product: int, low: int, which: int) -> str:
    return f"sum{product}_{low}_{which}"


def _load_item(name: str, stage: int, rows: int, listed: bool, shared: bool, ahead: int = 0) -> list[str]:
    """The item (or entry) of a stage, `ahead` stages from the loop's turn; zero behind the end."""
    behind = (stage + ahead) * rows
    load = f"ld.global.b32 {name}{stage}, [line+{4 * behind}];"
    if shared:
        load = f"ld.shared.b32 {name}{stage}, [list+{4 * behind}];"
    if not listed:
        load = f"ld.global.u16 half, [line+{2 * behind}]; @taken cvt.u32.u16 {name}{stage}, half;"
    return [f"mov.b32 {name}{stage}, 0; setp.gt.s32 taken, left, {behind}; @taken {load}"]


def _slot(name: str, part: str, row: str, own: str) -> list[str]:
    """Where part and row are in a stage."""
    return [f"shl.b32 a, {row}, 1; add.u32 a, a, {part}; and.b32 a, a, 7; mad.lo.u32 {name}, a, 16, {own};"
            f"mad.lo.u32 {name}, {row}, 128, {name};"]  # fmt: skip


def _hand_out(stage: int, name: str) -> str:
    """The items of a stage from the lanes that copied their rows to those that multiply them."""
    return f"shfl.sync.idx.b32 now{stage}, {name}{stage}, from, 31, 0xffffffff;"


def _copy(name: str, stage: int, ahead: int, rows: int, nibbles: bool, listed: bool) -> list[str]:
    """Ask for a stage of the row in name, or, not listed, `ahead` stages from the loop's turn."""
    if listed:
        lines = [f"shr.u32 row, {name}{stage}, 16; setp.ne.u32 taken, {name}{stage}, 0;"]
    else:
        behind = (stage + ahead) * rows
        lines = [f"setp.gt.s32 taken, left, {behind}; add.u32 row, at, {behind}; selp.b32 row, row, 0, taken;"]
    lines += ["mad.wide.u32 address, row, $7, $3; selp.b32 size, $9, 0, taken;"]
    lines += [f"cp.async.cg.shared.global [to+{_WORDS * stage}], [address], 16, size;"]
    if nibbles:
        lines += ["mad.wide.u32 address, row, 8, $4; selp.b32 size, 8, 0, taken;"]
        lines += [f"@first cp.async.ca.shared.global [narrow_to+{_SCALES * stage}], [address], 8, size;"]
    return lines


def _multiply(stage: int, nibbles: bool, bf16: bool) -> list[str]:
    """The sums with two stages."""
    lines = []
    for j in (0, 1):
        words = ", ".join(f"word{4 * j + i}" for i in range(4))
        lines += [f"ld.shared.v4.b32 {{{words}}}, [slot+{_WORDS * (stage + j)}];"]
        if nibbles:
            lines += [f"ld.shared.v2.b32 {{scale{2 * j}, scale{2 * j + 1}}}, [narrow+{_SCALES * (stage + j)}];"]
    for j in (0, 1):
        if bf16:
            lines += [f"shl.b32 a, now{stage + j}, 16; mov.b32 entry, a;"]
        else:
            lines += [f"cvt.u16.u32 half, now{stage + j}; cvt.f32.f16 entry, half;"]
        lines += ["mul.rn.f32 entry, entry, $8;"]
        for c in range(4 if nibbles else 1):
            if nibbles:
                lines += [f"{'and.b32 a, ' if c % 2 else 'shl.b32 a, '}scale{2 * j + c // 2}, "
                          f"{'0xffff0000' if c % 2 else '16'}; mov.b32 factor, a;"]  # fmt: skip
                lines += ["fma.rn.f32 factor, entry, factor, 0f4B400000;"]
            else:
                lines += ["add.rn.f32 factor, entry, 0f4B400000;"]
            lines += [f"mov.b32 a, factor; prmt.b32 in_high{4 * j + c}, a, 0x40, select_high;"]
            lines += [f"prmt.b32 in_low{4 * j + c}, a, 0x40, select_low;"]
    for each in _products(nibbles):
        if nibbles:
            codes = [f"code{i}" for i in range(4)]
            for j in (0, 1):  # (w ^ 0x80808080) & 0xf0f0f0f0 of the lower codes, moved up, and of the upper ones
                lines += [f"shl.b32 a, word{4 * j + each}, 4;"]
                lines += [f"lop3.b32 code{2 * j}, a, 0x80808080, 0xf0f0f0f0, 0x28;"]
                lines += [f"lop3.b32 code{2 * j + 1}, word{4 * j + each}, 0x80808080, 0xf0f0f0f0, 0x28;"]
            entries = (each, 4 + each)
        else:
            codes = [f"word{4 * j + 2 * each + i}" for j in (0, 1) for i in (0, 1)]
            entries = (0, 4)
        for low, name in enumerate(("in_high", "in_low")):
            sums = ", ".join(_sum(each, low, i) for i in range(4))
            lines += [f"mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {{{sums}}}, {{{', '.join(codes)}}}, "
                      f"{{{name}{entries[0]}, {name}{entries[1]}}}, {{{sums}}};"]  # fmt: skip
    return lines


def _kept(nibbles: bool) -> list[tuple[int, int, int]]:
    """(product of lanes t < 2, of lanes t >= 2, register) of what a lane keeps, in the order of outputs."""
    if nibbles:  # groups 0, 1 or 2, 3; outputs 4 (t % 2) to 4 (t % 2) + 3 of a word
        return [(group, 2 + group, register) for group in (0, 1) for register in (0, 2, 1, 3)]
    return [(0, 1, register) for register in range(4)]  # words 0, 1 or 2, 3; outputs 2 (t % 2) and the next of a word


def _meet(nibbles: bool, warps: int, swiglu: bool, region: int) -> list[str]:
    # Where a lane's outputs begin.
    if nibbles:
        steps = (_place(8, nibbles), _place(4, nibbles), _place(128, nibbles))
        offsets = [_place(64, nibbles) * (i // 4) + 8 * (i % 4) for i in range(8)]
    else:
        steps = (_place(16, nibbles), _place(2, nibbles), _place(8, nibbles))
        offsets = [_place(4, nibbles) * (i // 2) + 8 * (i % 2) for i in range(4)]
    lines = [
        "setp.ge.u32 far, t, 2;",
        f"mad.lo.u32 at, g, {steps[0]}, own; and.b32 a, t, 1; mad.lo.u32 at, a, {steps[1]}, at;",
        f"shr.u32 a, t, 1; mad.lo.u32 at, a, {steps[2]}, at;",
    ]
    for number, ((near, other, which), offset) in enumerate(zip(_kept(nibbles), offsets, strict=True)):
        whole = "whole1" if number % 2 else "whole"
        for name, low in (("low", 1), ("high", 0)):
            lines += [
                f"selp.b32 send, {_sum(near, low, which)}, {_sum(other, low, which)}, far;",
                f"selp.b32 {name}, {_sum(other, low, which)}, {_sum(near, low, which)}, far;",
                "shfl.sync.bfly.b32 met, send, 2, 31, 0xffffffff;",
                f"selp.b32 a, met, {name}, far; selp.b32 b, {name}, met, far;",
            ]
            if low:
                lines += [f"cvt.s64.s32 {whole}, a; mad.wide.s32 {whole}, b, 256, {whole};"]
            else:
                lines += [f"sub.s32 a, a, b; mad.wide.s32 {whole}, a, 65536, {whole};"]
        if number % 2:
            lines += [f"st.shared.v2.b64 [at+{offset - 8}], {{whole, whole1}};"]
    lines += ["bar.sync 0;"]
    return lines + _add_lines(nibbles, warps, swiglu, region)


def _add_lines(nibbles: bool, warps: int, swiglu: bool, region: int) -> list[str]:
    """The sums of all lines."""
    piece, share = 256 if nibbles else 128, sharers(nibbles, warps, swiglu)
    columns = piece // 2 if swiglu else piece
    lines = ["mov.b64 $0, 0; mov.b64 $1, 0;"]
    if share:
        if share * columns < 32 * warps:
            lines += [f"setp.ge.u32 far, tid, {share * columns}; @far bra larosa_met;"]
        shift = share.bit_length() - 1
        lines += [f"and.b32 a, tid, {share - 1}; mad.lo.u32 at, a, {region}, shared;"]
        lines += [f"shr.u32 a, tid, {shift}; mad.lo.u32 at, a, 8, at;"]
        second = _place(columns, nibbles) if swiglu else None
    else:
        lines += ["shl.b32 a, tid, 1; mad.lo.u32 at, a, 8, shared;"]
        second = 8
    if nibbles and columns > 128:
        lines += ["shr.u32 a, a, 7; mad.lo.u32 at, a, 16, at;"]
    elif not nibbles:
        lines += ["shr.u32 a, a, 4; mad.lo.u32 at, a, 32, at;"]
    starts = [0] if second is None else [0, second]
    for number, start in enumerate(starts):
        for line in range(0, warps, max(share, 1)):
            more = "more1" if line % 2 else "more"
            lines += [f"ld.shared.b64 {more}, [at+{start + region * line}]; add.s64 ${number}, ${number}, {more};"]
    for step in (1, 2)[: max(share, 1).bit_length() - 1]:
        for number in range(len(starts)):
            lines += [f"mov.b64 {{low, high}}, ${number};"]
            lines += [f"shfl.sync.bfly.b32 low, low, {step}, 31, 0xffffffff;"]
            lines += [f"shfl.sync.bfly.b32 high, high, {step}, 31, 0xffffffff;"]
            lines += [f"mov.b64 more, {{low, high}}; add.s64 ${number}, ${number}, more;"]
    return lines + ["larosa_met:"]
