"""One program a row: RMSNorm in registers, z written out, then the search over the rounded z."""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.common.packed_half import load_words, norm_words, store_words
from larosa_kernels.common.topk_search import write_keep


@triton.jit(do_not_specialize=["k"])
def norm_select_kernel(
    h, weight, bracket, limit, z, keep, n, k, eps,
    SEARCH: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr, EVEN: tl.constexpr, STRICT: tl.constexpr, INFINITY: tl.constexpr, PACKED: tl.constexpr,
    BRACKETED: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """h: [B, n], weight: [n] -> z: [B, n], keep: [B, 2]; grid (B,). Without SEARCH, keep is the pair at `limit`."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK // 2)
    gamma = load_words(weight, i, n, EVEN)
    words = norm_words(load_words(h + row * n, i, n, EVEN), gamma, n, eps, h.dtype.element_ty, INTERPRETED)
    store_words(z + row * n, i, words, n, EVEN)
    out = keep + row * 2
    if SEARCH:
        write_keep(words, n, k, bracket, out, STRICT, INFINITY, PACKED, BRACKETED, THREADS, VECTOR)
    else:
        tl.store(out, tl.load(limit))
        tl.store(out + 1, tl.load(limit + 1))
