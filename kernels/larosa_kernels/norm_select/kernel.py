"""One program a row: RMSNorm in registers, z written out, then the search over the rounded z."""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.search import magnitude_bits, round_to, search_row


@triton.jit(do_not_specialize=["k"])
def norm_select_kernel(
    h, weight, bracket, limit, z, keep, n, k, eps,
    SEARCH: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr, STRICT: tl.constexpr, INFINITY: tl.constexpr, WAYS: tl.constexpr, PACKED: tl.constexpr,
    TOGETHER: tl.constexpr, BRACKETED: tl.constexpr,
):  # fmt: skip
    """h: [B, n], weight: [n] -> z: [B, n], keep: [B, 2]; grid (B,). Without SEARCH, keep is the pair at `limit`."""
    row = tl.program_id(0).to(tl.int64)
    index = tl.arange(0, BLOCK)
    inside = index < n
    wide = tl.load(h + row * n + index, mask=inside, other=0.0).to(tl.float32)
    gamma = tl.load(weight + index, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / n + eps)
    dtype = z.dtype.element_ty
    normed = round_to(wide * scale, dtype, INTERPRETED).to(tl.float32)
    rounded = round_to(gamma * normed, dtype, INTERPRETED)
    tl.store(z + row * n + index, rounded, mask=inside)
    out = keep + row * 2
    if SEARCH:
        bits = magnitude_bits(rounded)
        search_row(bits, n, k, bracket, out, BLOCK, STRICT, INFINITY, WAYS, PACKED, TOGETHER, BRACKETED)
    else:
        tl.store(out, tl.load(limit))
        tl.store(out + 1, tl.load(limit + 1))
