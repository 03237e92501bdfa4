"""One program a row: the vector in registers, the k-th magnitude by counting (larosa_kernels/common/topk_search.py)."""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.common.packed_half import load_words
from larosa_kernels.common.topk_search import write_keep


@triton.jit(do_not_specialize=["k"])
def select_kernel(
    x, bracket, keep, n, k,
    BLOCK: tl.constexpr, EVEN: tl.constexpr, STRICT: tl.constexpr, INFINITY: tl.constexpr, PACKED: tl.constexpr,
    BRACKETED: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """x: [B, n] bf16 or fp16 -> keep: [B, 2] int32; grid (B,)."""
    row = tl.program_id(0).to(tl.int64)
    words = load_words(x + row * n, tl.arange(0, BLOCK // 2), n, EVEN)
    write_keep(words, n, k, bracket, keep + row * 2, STRICT, INFINITY, PACKED, BRACKETED, THREADS, VECTOR)
