"""Sparse matrix-vector product with the compaction inside.

Grid (column blocks, splits, B). Row i of the weight belongs to split i mod SPLITS: a basis sorted by variance keeps its
large entries in front, and strided rows give every split its share. A program
1. reads its rows' x, finds which stay, and writes their indices and values densely to a scratch line of its own;
2. walks that line ROWS at a time, gathering weight rows (coalesced along the columns) into fp32 sums;
3. writes its partial sums and counts itself in; the last of a column block adds all partials in the order of splits.
No sum depends on the order of arrival, so the output is the same to the bit from run to run.
"""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.search import magnitude_bits, round_to, stays


@triton.jit
def compact_rows(
    x, keep, rows, values, split, n,
    SPLITS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Write the kept rows of a split and their x to the scratch lines `rows` and `values`; return how many."""
    limit = tl.load(keep)
    last_index = tl.load(keep + 1)
    index = split + tl.arange(0, SLOTS) * SPLITS
    entry = tl.load(x + index, mask=index < n, other=0.0)
    kept = stays(magnitude_bits(entry), index, limit, last_index) & (index < n)
    position = tl.cumsum(kept.to(tl.int32), 0) - 1
    tl.store(rows + position, index, mask=kept)
    tl.store(values + position, entry.to(tl.float32), mask=kept)
    return tl.sum(kept.to(tl.int32), 0)


@triton.jit
def gather_rows(
    weight, rows, values, count, column, m,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr, DEFER: tl.constexpr,
):  # fmt: skip
    """[COLUMNS] fp32: sum of value * weight[row, column] over the scratch lines. DEFER: add up ROWS sums at the end."""
    inside = column < m
    partial = tl.zeros([COLUMNS], dtype=tl.float32)
    if DEFER:
        tile = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for first in tl.range(0, count, ROWS, num_stages=STAGES):
        slot = first + tl.arange(0, ROWS)
        taken = slot < count
        row = tl.load(rows + slot, mask=taken, other=0).to(tl.int64)
        value = tl.load(values + slot, mask=taken, other=0.0)
        w = tl.load(
            weight + row[:, None] * m + column[None, :],
            mask=taken[:, None] & inside[None, :],
            other=0,
            eviction_policy="evict_first",
        )
        if DEFER:
            tile += w.to(tl.float32) * value[:, None]
        else:
            partial += tl.sum(w.to(tl.float32) * value[:, None], 0)
    if DEFER:
        partial = tl.sum(tile, 0)
    return partial


@triton.jit
def finish_columns(
    partials, scale, bias, residual, y, column, m,
    SPLITS: tl.constexpr, COLUMNS: tl.constexpr, BATCH: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_RESIDUAL: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Add the partials of all splits in order, BATCH splits a load, then scale, bias and residual; round once."""
    inside = column < m
    total = tl.zeros([COLUMNS], dtype=tl.float32)
    for first in tl.static_range(0, SPLITS, BATCH):
        split = first + tl.arange(0, BATCH)
        total += tl.sum(
            tl.load(
                partials + split[:, None].to(tl.int64) * m + column[None, :],
                mask=(split < SPLITS)[:, None] & inside[None, :],
                other=0.0,
                cache_modifier=".cg",
            ),
            0,
        )
    if HAS_SCALE:
        total = total * tl.load(scale + column, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        total += tl.load(residual + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + column, round_to(total, y.dtype.element_ty, INTERPRETED), mask=inside)


@triton.jit
def sparse_gemv_kernel(
    x, keep, weight, scale, bias, residual, y, partials, counters, rows, values, n, m,
    SPLITS: tl.constexpr, SLOTS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
    DEFER: tl.constexpr, BATCH: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """See the module; shapes in functional.py. partials: [B, SPLITS, m] fp32, counters: [B, blocks] int32 zeros."""
    block = tl.program_id(0)
    split = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    blocks = tl.num_programs(0)
    line = ((batch * SPLITS + split) * blocks + block) * SLOTS
    count = compact_rows(x + batch * n, keep + batch * 2, rows + line, values + line, split, n, SPLITS, SLOTS)
    tl.debug_barrier()  # the scratch lines are read by other threads than wrote them
    column = block * COLUMNS + tl.arange(0, COLUMNS)
    partial = gather_rows(weight, rows + line, values + line, count, column, m, COLUMNS, ROWS, STAGES, DEFER)
    row = partials + batch * SPLITS * m
    tl.store(row + split.to(tl.int64) * m + column, partial, mask=column < m)
    tl.debug_barrier()  # every thread's partials come before the release below
    counter = counters + batch * blocks + block
    arrived = tl.atomic_add(counter, 1, sem="acq_rel")
    if arrived == SPLITS - 1:
        finish_columns(
            row, scale, bias, residual + batch * m, y + batch * m, column, m,
            SPLITS, COLUMNS, BATCH, HAS_SCALE, HAS_BIAS, HAS_RESIDUAL, INTERPRETED,
        )  # fmt: skip
        tl.store(counter, 0)  # ready for the next launch, a graph's replay included
