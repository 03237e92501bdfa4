"""PTX of a program's quantised product: rows copied ahead, multiplied on int8 tensor cores, sums of all warps added.

README.md explains stages, fragments and the exchange of sums. The PTX is made here, so Triton passes it on unread.
"""

from __future__ import annotations

from functools import cache

MOST_STAGES = 64
"""Stages of all warps of a program together: at 544 bytes each they fit static shared memory."""
_STATIC = 48 << 10
"""Bytes of shared memory that a kernel gets without opting in at its launch."""
_WORDS, _SCALES = 512, 32
"""Bytes per stage and warp: four rows of 128 bytes, and four scales for each of the four rows."""


def operands() -> str:
    """The constraints of `product`'s operands $0 to $9."""
    return "=l,=l,l,l,l,r,r,r,f,r"


def reserve(bytes_: int) -> str:
    """Shared memory of a program; $0 is its address."""
    return f".shared .align 16 .b8 larosa_shared[{bytes_}]; mov.u32 $0, larosa_shared;"


def plan(int4: bool, warps: int, most: int, items: int) -> tuple[int, int, int]:
    """(stages per warp, even, at most `most`; offset of the list of `items` in shared memory, 0: none; bytes in all).

    The list stays in global memory where fewer than four stages per warp would be left beside it.
    """
    most = max(2, min(most, MOST_STAGES // warps))
    for stages in range(most, 2, -2):
        list_offset = warps * _region(int4, stages)
        if items and list_offset + 4 * items <= _STATIC:
            return stages, list_offset, list_offset + 4 * items
    return most, 0, warps * _region(int4, most)


def sharers(int4: bool, warps: int, swiglu: bool) -> int:
    """Neighbouring threads that add up one output (with SwiGLU a gate and its up); 0: each thread adds up two."""
    columns = (256 if int4 else 128) // (2 if swiglu else 1)
    return min(4, 32 * warps // columns)


@cache
def product(
    int4: bool,
    warps: int,
    stages: int,
    listed: bool,
    bf16: bool,
    swiglu: bool,
    overlap: bool = False,
    list_offset: int = 0,
) -> str:
    """The product of all rows of a program, and its sums over all warps.

    listed: rows are those of a list of items (common/compaction.py), else all rows in order. bf16: entries are bf16,
    else fp16. overlap: lets the next launch begin once all rows are read. list_offset: as `plan` gives it.

    $0, $1  out, int64: with swiglu the sums of a gate and of its up, in `sharers` threads each; else the sum of one
            output and 0, or with `sharers` 0 the sums of outputs 2 i and 2 i + 1 of thread i
    $2      address of the items, or of the entries (16 bits each); not read where the list is in shared memory
    $3      address of the lane's 16 bytes in row 0
    $4      address of row 0's scales
    $5      number of items or entries
    $6      row of the first entry, not `listed`
    $7      bytes per row
    $8      what entries are multiplied with before they are rounded to integers, fp32
    $9      16, or 0 where the lane's bytes lie behind the row's end
    """
    region = _region(int4, stages)
    rows = 4 * warps
    lines = [
        ".reg .pred taken, far, first; .reg .b64 line, address, whole, whole1, more, more1;",
        ".reg .b32 tid, lane, t, g, own, part, to, slot, narrow_to, narrow, from, left, rest, row, size, at, list;",
        ".reg .b32 high, low, send, met, a, b, shared;",
        ".reg .b32 select_high, select_low; .reg .b16 half; .reg .f32 entry, factor;",
        f".reg .b32 now<{stages}>, next<{stages}>, word<8>, scale<4>, in_high<8>, in_low<8>, code<4>;",
        f".reg .b32 {', '.join(_sum(p, low, i) for p in _products(int4) for low in (0, 1) for i in range(4))};",
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
        f"mad.lo.u32 list, at, 4, shared; add.u32 list, list, {list_offset};",
        "add.u32 at, at, $6;",
        "setp.eq.u32 first, part, 0;",
        # Bytes of an entry for column n = g: byte `high` or `low` at k = g % 4, zeros (byte 5) elsewhere.
        "and.b32 a, g, 3; shl.b32 a, a, 2; shr.u32 b, g, 2; shl.b32 low, b, a; shl.b32 b, b, 1;",
        "add.u32 b, b, 2; shl.b32 high, b, a; mov.b32 b, 5; shl.b32 b, b, a; sub.u32 b, 0x5555, b;",
        "add.u32 select_high, b, high; add.u32 select_low, b, low;",
    ]
    for each in _products(int4):
        lines += ["".join(f"mov.b32 {_sum(each, low, i)}, 0; " for low in (0, 1) for i in range(4))]
    for stage in range(stages):
        lines += _load_item("now", stage, rows, listed, list_offset > 0)
    for stage in range(stages):
        lines += _copy("now", stage, 0, rows, int4, listed)
        lines += [_hand_out(stage, "now")]
        if stage % 2:
            lines += ["cp.async.commit_group;"]
    for stage in range(stages):
        lines += _load_item("next", stage, rows, listed, list_offset > 0, ahead=stages)
    lines += ["larosa_loop:"]
    for stage in range(0, stages, 2):
        lines += [f"setp.le.s32 taken, rest, {stage * rows}; @taken bra larosa_done;"]
        lines += [f"cp.async.wait_group {stages // 2 - 1}; bar.warp.sync 0xffffffff;"]
        lines += _multiply(stage, int4, bf16)
        lines += ["bar.warp.sync 0xffffffff;"]
        for each in (stage, stage + 1):
            lines += _copy("next", each, stages, rows, int4, listed)
            lines += [_hand_out(each, "next")]
            lines += _load_item("next", each, rows, listed, list_offset > 0, ahead=2 * stages)
        lines += ["cp.async.commit_group;"]
    turn = stages * rows
    lines += [
        f"sub.s32 rest, rest, {turn}; sub.s32 left, left, {turn}; add.u32 at, at, {turn};",
        f"add.u64 line, line, {turn * (4 if listed else 2)}; add.u32 list, list, {4 * turn}; bra larosa_loop;",
        "larosa_done:",
        *(["griddepcontrol.launch_dependents;"] if overlap else []),
        "cp.async.wait_group 0; bar.warp.sync 0xffffffff;",
    ]
    return "{ " + " ".join(lines + _exchange_and_add(int4, warps, swiglu, region)) + " }"


def _region(int4: bool, stages: int) -> int:
    """Bytes of shared memory per warp, for its copies or its line of sums: 128 j + 64, for the banks."""
    needed = max(_place(255 if int4 else 127, int4) + 8, stages * (_WORDS + _SCALES))
    return -(-(needed - 64) // 128) * 128 + 64


def _place(output: int, int4: bool) -> int:
    """Offset of an output in a warp's line of sums; the gaps keep lanes on different banks."""
    return 8 * output + (output // 128 * 16 if int4 else output // 16 * 32)


def _products(int4: bool) -> range:
    return range(4 if int4 else 2)


def _sum(product: int, low: int, which: int) -> str:
    return f"sum{product}_{low}_{which}"


def _load_item(name: str, stage: int, rows: int, listed: bool, shared: bool, ahead: int = 0) -> list[str]:
    """Load the item (or entry) of a stage, `ahead` stages from the loop's turn; zero behind the end."""
    behind = (stage + ahead) * rows
    load = f"ld.global.b32 {name}{stage}, [line+{4 * behind}];"
    if shared:
        load = f"ld.shared.b32 {name}{stage}, [list+{4 * behind}];"
    if not listed:
        load = f"ld.global.u16 half, [line+{2 * behind}]; @taken cvt.u32.u16 {name}{stage}, half;"
    return [f"mov.b32 {name}{stage}, 0; setp.gt.s32 taken, left, {behind}; @taken {load}"]


def _slot(name: str, part: str, row: str, base: str) -> list[str]:
    """The address of part and row within a stage, swizzled."""
    return [f"shl.b32 a, {row}, 1; add.u32 a, a, {part}; and.b32 a, a, 7; mad.lo.u32 {name}, a, 16, {base};"
            f"mad.lo.u32 {name}, {row}, 128, {name};"]  # fmt: skip


def _hand_out(stage: int, name: str) -> str:
    """Pass the items of a stage from the lanes that copied their rows to those that multiply them."""
    return f"shfl.sync.idx.b32 now{stage}, {name}{stage}, from, 31, 0xffffffff;"


def _copy(name: str, stage: int, ahead: int, rows: int, int4: bool, listed: bool) -> list[str]:
    """Copy a stage of the row in `name`, or, not listed, of the row `ahead` stages from the loop's turn."""
    if listed:
        lines = [f"shr.u32 row, {name}{stage}, 16; setp.ne.u32 taken, {name}{stage}, 0;"]
    else:
        behind = (stage + ahead) * rows
        lines = [f"setp.gt.s32 taken, left, {behind}; add.u32 row, at, {behind}; selp.b32 row, row, 0, taken;"]
    lines += ["mad.wide.u32 address, row, $7, $3; selp.b32 size, $9, 0, taken;"]
    lines += [f"cp.async.cg.shared.global [to+{_WORDS * stage}], [address], 16, size;"]
    if int4:
        lines += ["mad.wide.u32 address, row, 8, $4; selp.b32 size, 8, 0, taken;"]
        lines += [f"@first cp.async.ca.shared.global [narrow_to+{_SCALES * stage}], [address], 8, size;"]
    return lines


def _multiply(stage: int, int4: bool, bf16: bool) -> list[str]:
    """Multiply two stages: entries to bytes, then the tensor cores."""
    lines = []
    for j in (0, 1):
        words = ", ".join(f"word{4 * j + i}" for i in range(4))
        lines += [f"ld.shared.v4.b32 {{{words}}}, [slot+{_WORDS * (stage + j)}];"]
        if int4:
            lines += [f"ld.shared.v2.b32 {{scale{2 * j}, scale{2 * j + 1}}}, [narrow+{_SCALES * (stage + j)}];"]
    for j in (0, 1):
        if bf16:
            lines += [f"shl.b32 a, now{stage + j}, 16; mov.b32 entry, a;"]
        else:
            lines += [f"cvt.u16.u32 half, now{stage + j}; cvt.f32.f16 entry, half;"]
        lines += ["mul.rn.f32 entry, entry, $8;"]
        for c in range(4 if int4 else 1):
            if int4:
                lines += [f"{'and.b32 a, ' if c % 2 else 'shl.b32 a, '}scale{2 * j + c // 2}, "
                          f"{'0xffff0000' if c % 2 else '16'}; mov.b32 factor, a;"]  # fmt: skip
                lines += ["fma.rn.f32 factor, entry, factor, 0f4B400000;"]
            else:
                lines += ["add.rn.f32 factor, entry, 0f4B400000;"]
            lines += [f"mov.b32 a, factor; prmt.b32 in_high{4 * j + c}, a, 0x40, select_high;"]
            lines += [f"prmt.b32 in_low{4 * j + c}, a, 0x40, select_low;"]
    for each in _products(int4):
        if int4:
            operand = [f"code{i}" for i in range(4)]
            for j in (0, 1):  # (w ^ 0x80808080) & 0xf0f0f0f0 of the lower four bits, moved up, and of the upper
                lines += [f"shl.b32 a, word{4 * j + each}, 4;"]
                lines += [f"lop3.b32 code{2 * j}, a, 0x80808080, 0xf0f0f0f0, 0x28;"]
                lines += [f"lop3.b32 code{2 * j + 1}, word{4 * j + each}, 0x80808080, 0xf0f0f0f0, 0x28;"]
            entries = (each, 4 + each)
        else:
            operand = [f"word{4 * j + 2 * each + i}" for j in (0, 1) for i in (0, 1)]
            entries = (0, 4)
        for low, name in enumerate(("in_high", "in_low")):
            sums = ", ".join(_sum(each, low, i) for i in range(4))
            lines += [f"mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {{{sums}}}, {{{', '.join(operand)}}}, "
                      f"{{{name}{entries[0]}, {name}{entries[1]}}}, {{{sums}}};"]  # fmt: skip
    return lines


def _kept_sums(int4: bool) -> list[tuple[int, int, int]]:
    """(product in lanes t < 2, in lanes t >= 2, register) of each sum that a lane keeps, in the order of outputs."""
    if int4:  # groups 0, 1 or 2, 3; outputs 4 (t % 2) to 4 (t % 2) + 3 of a word
        return [(group, 2 + group, register) for group in (0, 1) for register in (0, 2, 1, 3)]
    return [(0, 1, register) for register in range(4)]  # words 0, 1 or 2, 3; outputs 2 (t % 2) and the next of a word


def _exchange_and_add(int4: bool, warps: int, swiglu: bool, region: int) -> list[str]:
    """Halves of a lane's sums exchanged, whole sums written to the warp's line, lines of all warps added."""
    # Where a lane's outputs list_offset.
    if int4:
        steps = (_place(8, int4), _place(4, int4), _place(128, int4))
        offsets = [_place(64, int4) * (i // 4) + 8 * (i % 4) for i in range(8)]
    else:
        steps = (_place(16, int4), _place(2, int4), _place(8, int4))
        offsets = [_place(4, int4) * (i // 2) + 8 * (i % 2) for i in range(4)]
    lines = [
        "setp.ge.u32 far, t, 2;",
        f"mad.lo.u32 at, g, {steps[0]}, own; and.b32 a, t, 1; mad.lo.u32 at, a, {steps[1]}, at;",
        f"shr.u32 a, t, 1; mad.lo.u32 at, a, {steps[2]}, at;",
    ]
    for number, ((near, other, which), offset) in enumerate(zip(_kept_sums(int4), offsets, strict=True)):
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
    return lines + _add_lines(int4, warps, swiglu, region)


def _add_lines(int4: bool, warps: int, swiglu: bool, region: int) -> list[str]:
    """$0 and $1: the sums over the lines of all warps."""
    piece, share = 256 if int4 else 128, sharers(int4, warps, swiglu)
    columns = piece // 2 if swiglu else piece
    lines = ["mov.b64 $0, 0; mov.b64 $1, 0;"]
    if share:
        if share * columns < 32 * warps:
            lines += [f"setp.ge.u32 far, tid, {share * columns}; @far bra larosa_met;"]
        shift = share.bit_length() - 1
        lines += [f"and.b32 a, tid, {share - 1}; mad.lo.u32 at, a, {region}, shared;"]
        lines += [f"shr.u32 a, tid, {shift}; mad.lo.u32 at, a, 8, at;"]
        second = _place(columns, int4) if swiglu else None
    else:
        lines += ["shl.b32 a, tid, 1; mad.lo.u32 at, a, 8, shared;"]
        second = 8
    if int4 and columns > 128:
        lines += ["shr.u32 a, a, 7; mad.lo.u32 at, a, 16, at;"]
    elif not int4:
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
