"""One program a row: SwiGLU in registers, written out, then the search over it."""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.common.packed_half import load_words, store_words, swiglu_words
from larosa_kernels.common.topk_search import write_keep


@triton.jit(do_not_specialize=["k"])
def swiglu_select_kernel(
    gate_up, bracket, limit, gate_limit, h, keep, n, k,
    SEARCH: tl.constexpr, GATED: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr, EVEN: tl.constexpr, STRICT: tl.constexpr, INFINITY: tl.constexpr, PACKED: tl.constexpr,
    BRACKETED: tl.constexpr, THREADS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """gate_up: [B, 2n] -> h: [B, n], keep: [B, 2]; grid (B,). GATED: keep is (0, -1), what passed is not zero."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK // 2)
    gate = load_words(gate_up + row * 2 * n, i, n, EVEN)
    up = load_words(gate_up + row * 2 * n + n, i, n, EVEN)
    words = swiglu_words(gate, up, gate_limit, gate_up.dtype.element_ty, GATED, INTERPRETED)
    store_words(h + row * n, i, words, n, EVEN)
    out = keep + row * 2
    if SEARCH:
        write_keep(words, n, k, bracket, out, STRICT, INFINITY, PACKED, BRACKETED, THREADS, VECTOR)
    elif GATED:
        tl.store(out, 0)
        tl.store(out + 1, -1)
    else:
        tl.store(out, tl.load(limit))
        tl.store(out + 1, tl.load(limit + 1))
