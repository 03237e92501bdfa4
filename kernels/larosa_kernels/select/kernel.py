"""One program a row: the vector in registers, the k-th magnitude by counting (larosa_kernels/search.py)."""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.pairs import load_words
from larosa_kernels.search import find_limit, first_candidates


@triton.jit
def write_keep(
    words, n, k, bracket, keep,
    STRICT: tl.constexpr, INFINITY: tl.constexpr, PACKED: tl.constexpr, BRACKETED: tl.constexpr,
    THREADS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Search the words of a row and write its pair."""
    first, second = first_candidates(bracket, INFINITY, BRACKETED)
    limit, last_index = find_limit(words & 0x7FFF7FFF, n, k, first, second, STRICT, INFINITY, PACKED, THREADS, VECTOR)
    tl.store(keep, limit)
    tl.store(keep + 1, last_index)


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
