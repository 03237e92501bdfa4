"""Partial softmax sums ("lines") that the splits of a head leave in memory, and their combination in fixed order.

A line is a maximum, a sum and WIDTH mixed values, even entries first. Blocks are 2-D where they touch memory: Triton
lays their rows over lanes, then warps, then registers. In which order it takes more dimensions depends on its version.
"""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.common.topk_search import round_to


@triton.jit
def leave_lines(
    mix, maxima, sums, head, high, total, even, odd,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, WARPS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write the sums of a warp's LANES slots as one line; high, total: [GROUP, 1, WARPS * LANES, 1]."""
    HALF: tl.constexpr = WIDTH // 2
    high = tl.reshape(high, (GROUP * WARPS, LANES, 1))
    top = tl.max(high, 1, keep_dims=True)
    share = tl.exp2(high - top)
    total = tl.sum(tl.reshape(total, (GROUP * WARPS, LANES, 1)) * share, 1)
    even = tl.sum(tl.reshape(even, (GROUP * WARPS, LANES, HALF)) * share, 1, keep_dims=True)
    odd = tl.sum(tl.reshape(odd, (GROUP * WARPS, LANES, HALF)) * share, 1, keep_dims=True)
    row = tl.arange(0, GROUP * WARPS)[:, None]
    line = ((head * GROUP + row // WARPS) * SPLITS + tl.program_id(1)) * WARPS + row % WARPS
    copy = tl.arange(0, 32)[None, :]
    tl.store(maxima + line + copy, tl.reshape(top, (GROUP * WARPS, 1)), mask=copy == 0)
    tl.store(sums + line + copy, total, mask=copy == 0)
    ENDS: tl.constexpr = max(LANES, 2)  # of a warp's slots one stores the even entries and one the odd
    row = tl.arange(0, GROUP * WARPS * ENDS)[:, None]
    end = row % ENDS
    line = ((head * GROUP + row // ENDS // WARPS) * SPLITS + tl.program_id(1)) * WARPS + row // ENDS % WARPS
    both = tl.where(tl.arange(0, ENDS)[None, :, None] == 0, even, odd)
    both = tl.reshape(both, (GROUP * WARPS * ENDS, HALF))
    tl.store(mix + line * WIDTH + end * HALF + tl.arange(0, HALF)[None, :], both, mask=end < 2)


@triton.jit
def _scale_of(maxima, sums, LINES: tl.constexpr):
    """(maximum, sum) of one head's LINES partial sums, found by every warp for itself."""
    SOME: tl.constexpr = min(LINES, 32)
    some = tl.arange(0, SOME)
    high = tl.load(maxima + some, cache_modifier=".cg")
    total = tl.load(sums + some, cache_modifier=".cg")
    for more in tl.static_range(SOME, LINES, SOME):
        next_high = tl.load(maxima + more + some, cache_modifier=".cg")
        next_total = tl.load(sums + more + some, cache_modifier=".cg")
        top = tl.maximum(high, next_high)
        total = total * tl.exp2(high - top) + next_total * tl.exp2(next_high - top)
        high = top
    top = tl.max(high, 0)
    return top, tl.sum(total * tl.exp2(high - top), 0)


@triton.jit
def _combine(
    mix, maxima, sums, out,
    PER: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, LINES: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """out: [PER, WIDTH] from LINES partial sums a head, brought to one scale. Even entries of mix come first."""
    group = tl.arange(0, GROUP)
    dim = tl.arange(0, WIDTH)
    row = tl.arange(0, LINES * GROUP)[:, None]  # heads first, so that warps take heads before they share a head
    line = row % GROUP * LINES + row // GROUP
    parts = tl.load(mix + line * WIDTH + dim[None, :], cache_modifier=".cg")
    parts = tl.reshape(parts, (LINES, GROUP, WIDTH))
    high = tl.reshape(tl.load(maxima + line, cache_modifier=".cg"), (LINES, GROUP, 1))
    if GROUP == 1:
        top, total = _scale_of(maxima, sums, LINES)
        mixed = tl.sum(parts * tl.exp2(high - top), 0) / total
    else:
        share = tl.exp2(high - tl.max(high, 0)[None, :, :])
        total = tl.reshape(tl.load(sums + line, cache_modifier=".cg"), (LINES, GROUP, 1))
        mixed = tl.sum(parts * share, 0) / tl.sum(total * share, 0)
    cell = group[:, None] * WIDTH + (dim % (WIDTH // 2) * 2 + dim // (WIDTH // 2))[None, :]
    tl.store(out + cell, round_to(mixed, out.dtype.element_ty, INTERPRETED), mask=(group < PER)[:, None])


@triton.jit
def finish(
    mix, maxima, sums, counters, out, head,
    PER: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, LINES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Announce this program's partial sums; the last of a head's programs combines them."""
    tl.debug_barrier()  # every thread's partials come before the release below
    if tl.atomic_add(counters + head, 1, sem="acq_rel") == SPLITS - 1:
        line = head * GROUP * LINES
        _combine(
            mix + line * WIDTH, maxima + line, sums + line, out + head * PER * WIDTH,
            PER, GROUP, WIDTH, LINES, INTERPRETED,
        )  # fmt: skip
        tl.store(counters + head, 0)  # ready for the next launch, a graph's replay included
