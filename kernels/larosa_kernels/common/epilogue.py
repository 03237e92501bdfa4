"""Scale and bias of a product's outputs: device functions that both sparse products share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_scale_and_bias(scale, bias, o_col, m_col, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr):
    """(scale, bias) of the outputs o_col, fp32; what a weight does not have is filled and never used."""
    b_scale = tl.full([o_col.shape[0]], 1.0, tl.float32)
    b_bias = tl.full([o_col.shape[0]], 0.0, tl.float32)
    if HAS_SCALE:
        b_scale = tl.load(scale + o_col, mask=m_col, other=0.0)
    if HAS_BIAS:
        b_bias = tl.load(bias + o_col, mask=m_col, other=0.0).to(tl.float32)
    return b_scale, b_bias


@triton.jit
def scale_and_bias(total, b_scale, b_bias, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr):
    """fp32 sums times scale plus bias."""
    if HAS_SCALE:
        total = total * b_scale
    if HAS_BIAS:
        total += b_bias
    return total
