"""Argmax split over the vocabulary; the last program to arrive combines the parts of all rows and ends the step.

An entry is one int32 key of its rank and its index, see README.md, so the largest key is the same in any order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _first_largest(keys, count, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """The first index of a row's largest entry from the largest keys of its `count` parts, int64."""
    o_part = tl.arange(0, PARTS)
    b_key = tl.load(keys + o_part, mask=o_part < count, other=-0x80000000, cache_modifier=".cg")
    index = o_part * BLOCK + BLOCK - 1 - (b_key & 0xFFFF)
    return -tl.max((b_key >> 16).to(tl.int64) * 0x100000000 - index, 0) & 0xFFFFFFFF


@triton.jit
def greedy_sample_kernel(
    logits, token, tokens, position, keys, counter, n, length,
    INFINITY: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """logits: [B, n] bf16 or fp16; grid (parts, B), BLOCK entries per part, PARTS: their number as a power of two.

    keys: [B, parts] int32 scratch. counter: [1] int32 zero, left as zero. length: of the history `tokens` [B, length].
    """
    i_row = tl.program_id(1)
    count = tl.num_programs(0)
    rows = tl.num_programs(1)
    o_entry = tl.arange(0, BLOCK)
    o_logit = tl.program_id(0) * BLOCK + o_entry
    m_logit = o_logit < n
    p_row = logits.to(tl.pointer_type(tl.int16)) + i_row.to(tl.int64) * n
    b_pattern = tl.load(p_row + o_logit, mask=m_logit, other=0).to(tl.int32)
    b_size = b_pattern & 0x7FFF
    b_rank = tl.where(b_size > INFINITY, 0x7FFF, tl.where(b_pattern < 0, -b_size, b_size))  # -0.0 is 0
    b_key = tl.where(m_logit, b_rank, -0x8000) * 0x10000 + (BLOCK - 1 - o_entry)
    tl.store(keys + i_row * count + tl.program_id(0), tl.max(b_key, 0))
    tl.debug_barrier()  # the store comes before the release below
    if tl.atomic_add(counter, 1, sem="acq_rel") == count * rows - 1:
        i_position = tl.load(position)
        for b in range(rows):
            b_token = tl.load(token + b)
            tl.store(tokens + b * length + i_position, b_token, mask=i_position < length)
            tl.store(token + b, _first_largest(keys + b * count, count, BLOCK, PARTS))
        tl.store(position, i_position + 1)
        tl.store(counter, 0)  # ready for the next launch, a graph's replay included
