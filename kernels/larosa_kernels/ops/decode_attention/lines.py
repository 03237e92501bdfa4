"""Partial softmax sums ("lines") that the splits of a head leave in memory, and their combination in fixed order.

Blocks are 2-D where they touch memory: how Triton lays out more dimensions depends on its version.
"""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.common.topk_search import round_to


@triton.jit
def leave_lines(
    mix, maxima, sums, i_head, maximum, total, even, odd,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, WARPS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write the sums of a warp's LANES slots as one line; high, total: [GROUP, 1, WARPS * LANES, 1]."""
    HALF: tl.constexpr = WIDTH // 2
    maximum = tl.reshape(maximum, (GROUP * WARPS, LANES, 1))
    top = tl.max(maximum, 1, keep_dims=True)
    share = tl.exp2(maximum - top)
    total = tl.sum(tl.reshape(total, (GROUP * WARPS, LANES, 1)) * share, 1)
    even = tl.sum(tl.reshape(even, (GROUP * WARPS, LANES, HALF)) * share, 1, keep_dims=True)
    odd = tl.sum(tl.reshape(odd, (GROUP * WARPS, LANES, HALF)) * share, 1, keep_dims=True)
    o_row = tl.arange(0, GROUP * WARPS)[:, None]
    o_line = ((i_head * GROUP + o_row // WARPS) * SPLITS + tl.program_id(1)) * WARPS + o_row % WARPS
    copy = tl.arange(0, 32)[None, :]
    tl.store(maxima + o_line + copy, tl.reshape(top, (GROUP * WARPS, 1)), mask=copy == 0)
    tl.store(sums + o_line + copy, total, mask=copy == 0)
    ENDS: tl.constexpr = max(LANES, 2)  # of a warp's slots one stores the even entries and one the odd
    o_row = tl.arange(0, GROUP * WARPS * ENDS)[:, None]
    end = o_row % ENDS
    o_line = ((i_head * GROUP + o_row // ENDS // WARPS) * SPLITS + tl.program_id(1)) * WARPS + o_row // ENDS % WARPS
    both = tl.where(tl.arange(0, ENDS)[None, :, None] == 0, even, odd)
    both = tl.reshape(both, (GROUP * WARPS * ENDS, HALF))
    tl.store(mix + o_line * WIDTH + end * HALF + tl.arange(0, HALF)[None, :], both, mask=end < 2)


@triton.jit
def _scale_of(maxima, sums, LINES: tl.constexpr):
    """(maximum, sum) of one head's LINES partial sums, computed by every warp for itself."""
    SOME: tl.constexpr = min(LINES, 32)
    some = tl.arange(0, SOME)
    maximum = tl.load(maxima + some, cache_modifier=".cg")
    total = tl.load(sums + some, cache_modifier=".cg")
    for more in tl.static_range(SOME, LINES, SOME):
        next_high = tl.load(maxima + more + some, cache_modifier=".cg")
        next_total = tl.load(sums + more + some, cache_modifier=".cg")
        top = tl.maximum(maximum, next_high)
        total = total * tl.exp2(maximum - top) + next_total * tl.exp2(next_high - top)
        maximum = top
    top = tl.max(maximum, 0)
    return top, tl.sum(total * tl.exp2(maximum - top), 0)


@triton.jit
def _combine(
    mix, maxima, sums, out,
    PER_KV: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, LINES: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """out: [PER_KV, WIDTH] from LINES partial sums per head, rescaled to one maximum; mix has even entries first."""
    o_group = tl.arange(0, GROUP)
    o_dim = tl.arange(0, WIDTH)
    o_row = tl.arange(0, LINES * GROUP)[:, None]  # heads first, so that warps take heads before they share a i_head
    o_line = o_row % GROUP * LINES + o_row // GROUP
    parts = tl.load(mix + o_line * WIDTH + o_dim[None, :], cache_modifier=".cg")
    parts = tl.reshape(parts, (LINES, GROUP, WIDTH))
    maximum = tl.reshape(tl.load(maxima + o_line, cache_modifier=".cg"), (LINES, GROUP, 1))
    if GROUP == 1:
        top, total = _scale_of(maxima, sums, LINES)
        mixed = tl.sum(parts * tl.exp2(maximum - top), 0) / total
    else:
        share = tl.exp2(maximum - tl.max(maximum, 0)[None, :, :])
        total = tl.reshape(tl.load(sums + o_line, cache_modifier=".cg"), (LINES, GROUP, 1))
        mixed = tl.sum(parts * share, 0) / tl.sum(total * share, 0)
    o_out = o_group[:, None] * WIDTH + (o_dim % (WIDTH // 2) * 2 + o_dim // (WIDTH // 2))[None, :]
    tl.store(out + o_out, round_to(mixed, out.dtype.element_ty, INTERPRETED), mask=(o_group < PER_KV)[:, None])


@triton.jit
def finish(
    mix, maxima, sums, counters, out, i_head,
    PER_KV: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, SPLITS: tl.constexpr, LINES: tl.constexpr,
    INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Announce this program's partial sums; the last of a head's programs combines them."""
    tl.debug_barrier()  # every thread's partials come before the release below
    if tl.atomic_add(counters + i_head, 1, sem="acq_rel") == SPLITS - 1:
        o_line = i_head * GROUP * LINES
        _combine(
            mix + o_line * WIDTH, maxima + o_line, sums + o_line, out + i_head * PER_KV * WIDTH,
            PER_KV, GROUP, WIDTH, LINES, INTERPRETED,
        )  # fmt: skip
        tl.store(counters + i_head, 0)  # ready for the next launch, a graph's replay included
