"""Rotary embedding inside a kernel: heads of one token, rotated as torch does it in their dtype; halves of words."""

from __future__ import annotations

import triton
import triton.language as tl

from larosa_kernels.common.topk_search import round_to


@triton.jit
def rounded(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """fp32 x rounded to `dtype` and back, in a way that the compiler cannot drop: it fuses half products and sums."""
    if INTERPRETED:
        return round_to(x, dtype, True).to(tl.float32)
    elif dtype == tl.bfloat16:
        bits = tl.inline_asm_elementwise(  # bf16 above a zero half is fp32
            "cvt.rn.bf16x2.f32 $0, $1, 0f00000000;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1
        )
        return bits.to(tl.float32, bitcast=True)
    else:
        asm: tl.constexpr = "{ .reg .b16 h; cvt.rn.f16.f32 h, $1; cvt.f32.f16 $0, h; }"
        return tl.inline_asm_elementwise(asm, "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def angle_of(cos, sin, at, ROWS: tl.constexpr, WIDTH: tl.constexpr, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """(cos, signed sin) at position `at`: [ROWS, WIDTH] fp32, equal rows, rounded to `dtype`."""
    dim = tl.arange(0, WIDTH)
    cell = at.to(tl.int64) * WIDTH + tl.arange(0, ROWS)[:, None] * 0 + dim[None, :]
    c = round_to(tl.load(cos + cell).to(tl.float32), dtype, INTERPRETED).to(tl.float32)
    s = round_to(tl.load(sin + cell).to(tl.float32), dtype, INTERPRETED).to(tl.float32)
    return c, tl.where(dim[None, :] < WIDTH // 2, -s, s)  # the lower half takes the negated upper one


@triton.jit
def rotate(x, c, s, head, WIDTH: tl.constexpr, INTERPRETED: tl.constexpr):
    """[rows, WIDTH] fp32 of heads `head` [rows] at x, rotated; rounded after each step, as torch does in x's dtype."""
    dim = tl.arange(0, WIDTH)
    dtype: tl.constexpr = x.dtype.element_ty
    other = (dim + WIDTH // 2) % WIDTH
    plain = tl.load(x + head[:, None] * WIDTH + dim[None, :]).to(tl.float32)
    turned = tl.load(x + head[:, None] * WIDTH + other[None, :]).to(tl.float32)
    first = rounded(plain * c, dtype, INTERPRETED)
    return rounded(first + rounded(turned * s, dtype, INTERPRETED), dtype, INTERPRETED)


@triton.jit
def heads_of(qkv, PER: tl.constexpr, WIDTH: tl.constexpr):
    """(pointer to this batch row's heads, numbers of this program's first query, its key, its value)."""
    kv_heads = tl.num_programs(0)
    kv = tl.program_id(0)
    row = qkv + tl.program_id(2).to(tl.int64) * kv_heads * (PER + 2) * WIDTH
    return row, kv * PER, kv_heads * PER + kv, kv_heads * (PER + 1) + kv


@triton.jit
def halves(pairs, dtype: tl.constexpr):
    """(even, odd) entries in fp32 of int32 words that hold two each."""
    if dtype == tl.bfloat16:
        return (pairs << 16).to(tl.float32, bitcast=True), (pairs & -65536).to(tl.float32, bitcast=True)
    else:
        even = pairs.to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
        return even, (pairs >> 16).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)
