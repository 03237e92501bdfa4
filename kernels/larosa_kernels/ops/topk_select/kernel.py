"""Top-K over each row: one program per row, the vector in registers, the k-th magnitude by counting.

The search itself is common/topk_search.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.common.packed_half import load_words
from larosa_kernels.common.topk_search import store_topk_bound


@triton.jit(do_not_specialize=["k"])
def topk_select_kernel(
    x, search_range, bound, n, k,
    BLOCK: tl.constexpr, EVEN: tl.constexpr, STRICT: tl.constexpr, INFINITY: tl.constexpr, PACKED: tl.constexpr,
    HAS_RANGE: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """x: [B, n] bf16 or fp16 -> bound: [B, 2] int32; grid (B,)."""
    i_row = tl.program_id(0).to(tl.int64)
    b_words = load_words(x + i_row * n, tl.arange(0, BLOCK // 2), n, EVEN)
    store_topk_bound(
        b_words, n, k, search_range, bound + i_row * 2, STRICT, INFINITY, PACKED, HAS_RANGE, THREADS, VECTOR
    )
