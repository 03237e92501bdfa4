"""Scale and bias around the sums of a product: device functions that both sparse products share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_around(scale, bias, column, fit, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Factor and summand of the outputs; what is not there is never used."""
    factor = tl.full([column.shape[0]], 1.0, tl.float32)
    summand = tl.full([column.shape[0]], 0.0, tl.float32)
    if HAS_SCALE:
        factor = tl.load(scale + column, mask=fit, other=0.0)
    if HAS_BIAS:
        summand = tl.load(bias + column, mask=fit, other=0.0).to(tl.float32)
    return factor, summand


@triton.jit
def finish(total, factor, summand, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr):
    """fp32 sums with scale and bias."""
    if HAS_SCALE:
        total = total * factor
    if HAS_BIAS:
        total += summand
    return total
