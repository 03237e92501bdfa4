"""RMSNorm and Top-K: one program per row; the norm in registers, z written out, then the search over the rounded z."""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.common.packed_half import load_words, norm_words, store_words
from larosa_kernels.common.topk_search import store_topk_bound


@triton.jit(do_not_specialize=["k"])
def rmsnorm_topk_kernel(
    h, weight, search_range, threshold, z, bound, n, k, eps,
    SEARCH: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr, EVEN: tl.constexpr, STRICT: tl.constexpr, INFINITY: tl.constexpr, PACKED: tl.constexpr,
    HAS_RANGE: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """h: [B, n], weight: [n] -> z: [B, n], bound: [B, 2]; grid (B,). Without SEARCH the bound is `threshold` [2]."""
    i_row = tl.program_id(0).to(tl.int64)
    o_word = tl.arange(0, BLOCK // 2)
    b_gamma = load_words(weight, o_word, n, EVEN)
    b_h = load_words(h + i_row * n, o_word, n, EVEN)
    b_z = norm_words(b_h, b_gamma, n, eps, h.dtype.element_ty, INTERPRETED)
    store_words(z + i_row * n, o_word, b_z, n, EVEN)
    p_bound = bound + i_row * 2
    if SEARCH:
        store_topk_bound(b_z, n, k, search_range, p_bound, STRICT, INFINITY, PACKED, HAS_RANGE, THREADS, VECTOR)
    else:
        tl.store(p_bound, tl.load(threshold))
        tl.store(p_bound + 1, tl.load(threshold + 1))
