"""One program a row: the vector in registers, the k-th magnitude by counting (larosa_kernels/search.py)."""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.search import magnitude_bits, search_row


@triton.jit(do_not_specialize=["k"])
def select_kernel(
    x, bracket, keep, n, k,
    BLOCK: tl.constexpr, STRICT: tl.constexpr, INFINITY: tl.constexpr, WAYS: tl.constexpr, PACKED: tl.constexpr,
    TOGETHER: tl.constexpr, BRACKETED: tl.constexpr,
):  # fmt: skip
    """x: [B, n] bf16 or fp16 -> keep: [B, 2] int32; grid (B,)."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    bits = magnitude_bits(tl.load(x + row * n + index, mask=index < n, other=0.0))
    search_row(bits, n, k, bracket, keep + row * 2, BLOCK, STRICT, INFINITY, WAYS, PACKED, TOGETHER, BRACKETED)
