"""Rotary embedding inside a kernel: heads of one token, normed and rotated as torch does it in their dtype."""

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
def angle_of(
    cos, sin, i_position, ROWS: tl.constexpr, WIDTH: tl.constexpr, dtype: tl.constexpr, INTERPRETED: tl.constexpr
):
    """(cos, signed sin) at a position: [ROWS, WIDTH] fp32, equal rows, rounded to `dtype`."""
    o_dim = tl.arange(0, WIDTH)
    o_angle = i_position.to(tl.int64) * WIDTH + tl.arange(0, ROWS)[:, None] * 0 + o_dim[None, :]
    b_cos = round_to(tl.load(cos + o_angle).to(tl.float32), dtype, INTERPRETED).to(tl.float32)
    b_sin = round_to(tl.load(sin + o_angle).to(tl.float32), dtype, INTERPRETED).to(tl.float32)
    return b_cos, tl.where(o_dim[None, :] < WIDTH // 2, -b_sin, b_sin)  # the lower half takes the negated upper one


@triton.jit
def rotate(
    x, b_cos, b_sin, o_head, norms, o_norm, eps,
    WIDTH: tl.constexpr, NORMED: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """[rows, WIDTH] fp32 of heads o_head [rows] at x, rotated; rounded after each step, as torch does in x's dtype.

    NORMED: first an RMSNorm over each head, by the weights in row o_norm [rows] of `norms`.
    """
    o_dim = tl.arange(0, WIDTH)
    dtype: tl.constexpr = x.dtype.element_ty
    o_other = (o_dim + WIDTH // 2) % WIDTH
    b_x = tl.load(x + o_head[:, None] * WIDTH + o_dim[None, :]).to(tl.float32)
    b_half = tl.load(x + o_head[:, None] * WIDTH + o_other[None, :]).to(tl.float32)  # of rotate_half(x)
    if NORMED:
        b_scale = tl.rsqrt(tl.sum(b_x * b_x, 1, keep_dims=True) / WIDTH + eps)
        b_gain = tl.load(norms + o_norm[:, None] * WIDTH + o_dim[None, :]).to(tl.float32)
        b_other = tl.load(norms + o_norm[:, None] * WIDTH + o_other[None, :]).to(tl.float32)
        b_x = rounded(rounded(b_x * b_scale, dtype, INTERPRETED) * b_gain, dtype, INTERPRETED)
        b_half = rounded(rounded(b_half * b_scale, dtype, INTERPRETED) * b_other, dtype, INTERPRETED)
    b_direct = rounded(b_x * b_cos, dtype, INTERPRETED)
    return rounded(b_direct + rounded(b_half * b_sin, dtype, INTERPRETED), dtype, INTERPRETED)


@triton.jit
def heads_of(qkv, PER_KV: tl.constexpr, WIDTH: tl.constexpr):
    """(pointer to this batch row's heads, numbers of this program's first query, its key, its value)."""
    kv_heads = tl.num_programs(0)
    i_kv = tl.program_id(0)
    p_row = qkv + tl.program_id(2).to(tl.int64) * kv_heads * (PER_KV + 2) * WIDTH
    return p_row, i_kv * PER_KV, kv_heads * PER_KV + i_kv, kv_heads * (PER_KV + 1) + i_kv
