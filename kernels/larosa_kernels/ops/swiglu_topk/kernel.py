"""SwiGLU and Top-K: one program per row; the product in registers, h written out, then the search over it."""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.common.packed_half import load_words, store_words, swiglu_words
from larosa_kernels.common.topk_search import store_topk_bound


@triton.jit(do_not_specialize=["k"])
def swiglu_topk_kernel(
    gate_up, search_range, threshold, gate_threshold, h, bound, n, k,
    SEARCH: tl.constexpr, GATED: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr, EVEN: tl.constexpr, STRICT: tl.constexpr, INFINITY: tl.constexpr, PACKED: tl.constexpr,
    HAS_RANGE: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """gate_up: [B, 2n] -> h: [B, n], bound: [B, 2]; grid (B,).

    SEARCH: the bound of the k largest of h. GATED: (0, -1), which selects what is not zero. Else the pair `threshold`.
    """
    i_row = tl.program_id(0).to(tl.int64)
    o_word = tl.arange(0, BLOCK // 2)
    b_gate = load_words(gate_up + i_row * 2 * n, o_word, n, EVEN)
    b_up = load_words(gate_up + i_row * 2 * n + n, o_word, n, EVEN)
    b_h = swiglu_words(b_gate, b_up, gate_threshold, gate_up.dtype.element_ty, GATED, INTERPRETED)
    store_words(h + i_row * n, o_word, b_h, n, EVEN)
    p_bound = bound + i_row * 2
    if SEARCH:
        store_topk_bound(b_h, n, k, search_range, p_bound, STRICT, INFINITY, PACKED, HAS_RANGE, THREADS, VECTOR)
    elif GATED:
        tl.store(p_bound, 0)
        tl.store(p_bound + 1, -1)
    else:
        tl.store(p_bound, tl.load(threshold))
        tl.store(p_bound + 1, tl.load(threshold + 1))
