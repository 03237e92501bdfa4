"""Argmax split over the vocabulary; the last program to arrive combines the parts of all rows and ends the step.

An entry is one int32 key: the rank of its value in the upper half, in the lower half how early it comes in its part.
So the largest key is that of the first of the largest values, in whatever order keys meet.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _first_largest(parts, count, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """The first index of a row's largest entry from the largest keys of its `count` parts, int64."""
    part = tl.arange(0, PARTS)
    key = tl.load(parts + part, mask=part < count, other=-0x80000000, cache_modifier=".cg")
    index = part * BLOCK + BLOCK - 1 - (key & 0xFFFF)
    return -tl.max((key >> 16).to(tl.int64) * 0x100000000 - index, 0) & 0xFFFFFFFF


@triton.jit
def pick_kernel(
    logits, token, tokens, position, parts, counter, n, length,
    INFINITY: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """logits: [B, n] bf16 or fp16; grid (parts, B), BLOCK entries a part, PARTS: their number as a power of two."""
    row = tl.program_id(1)
    count = tl.num_programs(0)
    rows = tl.num_programs(1)
    entry = tl.arange(0, BLOCK)
    i = tl.program_id(0) * BLOCK + entry
    pattern = tl.load(logits.to(tl.pointer_type(tl.int16)) + row.to(tl.int64) * n + i, mask=i < n, other=0).to(tl.int32)
    size = pattern & 0x7FFF
    rank = tl.where(size > INFINITY, 0x7FFF, tl.where(pattern < 0, -size, size))  # -0.0 is 0
    key = tl.where(i < n, rank, -0x8000) * 0x10000 + (BLOCK - 1 - entry)
    tl.store(parts + row * count + tl.program_id(0), tl.max(key, 0))
    tl.debug_barrier()  # the store comes before the release below
    if tl.atomic_add(counter, 1, sem="acq_rel") == count * rows - 1:
        at = tl.load(position)
        for b in range(rows):
            read = tl.load(token + b)
            tl.store(tokens + b * length + at, read, mask=at < length)
            tl.store(token + b, _first_largest(parts + b * count, count, BLOCK, PARTS))
        tl.store(position, at + 1)
        tl.store(counter, 0)  # ready for the next launch, a graph's replay included
