"""y = sum over kept i of x_i weight[i, :] (+ bias) (+ residual), readable.

Weights lie input-major, [n, m], so that a dropped input is a row that nobody reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from larosa_kernels.common.selection import kept_mask
from larosa_kernels.ops.rmsnorm_topk.reference import norm_reference
from larosa_kernels.ops.sparse_gemv_quantised.packing import unpacked
from larosa_kernels.ops.swiglu_topk.reference import swiglu_reference
from larosa_kernels.ops.topk_select.reference import select_reference


def sparse_gemv_reference(
    x: Tensor,
    keep: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    m: int | None = None,
    paired: bool = False,
) -> Tensor:
    """x: [B, n], keep: [B, 2], weight: [n, m] -> y [B, m] in x's dtype, summed in fp32 and rounded once.

    scale: [m] fp32 for an int8 weight; a uint8 one with scale [blocks, n, 4], m and paired is packed (packing.py).
    Rows of dropped inputs may hold anything, NaN included.
    """
    if weight.dtype == torch.uint8 and scale is not None and m is not None:
        weight, scale = unpacked(weight, scale, m, paired), None
    kept = kept_mask(x, keep)
    if bool(kept.all()):
        y = x.float() @ weight.float()
    else:
        rows = []
        for row in range(x.shape[0]):
            index = kept[row].nonzero().squeeze(1)
            rows.append(x[row, index].float() @ weight[index].float())
        y = torch.stack(rows)
    if scale is not None:
        y = y * scale
    if bias is not None:
        y = y + bias.float()
    if residual is not None:
        y = y + residual.float()
    return y.to(x.dtype)


def select_gemv_reference(
    x: Tensor,
    weight: Tensor,
    k: int,
    ties: str = "strict",
    limit: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    swiglu: bool = False,
    gate_limit: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    m: int | None = None,
    paired: bool = False,
) -> Tensor:
    """The single ops, one after another; see api.py."""
    z = x if norm is None else norm_reference(x, norm, eps)
    keep = select_reference(z, k, ties) if limit is None else limit.repeat(x.shape[0], 1)
    y = sparse_gemv_reference(z, keep, weight, bias, residual, scale, m, paired)
    return swiglu_reference(y, gate_limit) if swiglu else y
