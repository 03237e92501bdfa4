"""y = sum over selected i of x_i weight[i, :] (+ bias) (+ residual).

Weights are input-major, [n, m]: a dropped entry is a row that nobody reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from larosa_kernels.common.selection import selected_mask
from larosa_kernels.ops.rmsnorm_topk.reference import rmsnorm_reference
from larosa_kernels.ops.sparse_gemv_quantised.packing import dequantise
from larosa_kernels.ops.swiglu_topk.reference import swiglu_reference
from larosa_kernels.ops.topk_select.reference import topk_select_reference


def sparse_gemv_reference(
    x: Tensor,
    bound: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    out_features: int | None = None,
    paired: bool = False,
) -> Tensor:
    """x: [B, n], bound: [B, 2], weight: [n, m] -> y [B, m] in x's dtype, summed in fp32 and rounded once.

    A quantised weight and its scale: sparse_gemv_quantised/api.py. Rows of dropped entries may hold anything, NaN
    included.
    """
    if weight.dtype == torch.uint8 and scale is not None and out_features is not None:
        weight, scale = dequantise(weight, scale, out_features, paired), None
    selected = selected_mask(x, bound)
    if bool(selected.all()):
        y = x.float() @ weight.float()
    else:
        rows = []
        for row in range(x.shape[0]):
            index = selected[row].nonzero().squeeze(1)
            rows.append(x[row, index].float() @ weight[index].float())
        y = torch.stack(rows)
    if scale is not None:
        y = y * scale
    if bias is not None:
        y = y + bias.float()
    if residual is not None:
        y = y + residual.float()
    return y.to(x.dtype)


def fused_sparse_gemv_reference(
    x: Tensor,
    weight: Tensor,
    k: int,
    ties: str = "strict",
    threshold: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    swiglu: bool = False,
    gate_threshold: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    out_features: int | None = None,
    paired: bool = False,
) -> Tensor:
    """The single ops, one after another; arguments as in `fused_sparse_gemv`."""
    z = x if norm is None else rmsnorm_reference(x, norm, eps)
    bound = topk_select_reference(z, k, ties) if threshold is None else threshold.repeat(x.shape[0], 1)
    y = sparse_gemv_reference(z, bound, weight, bias, residual, scale, out_features, paired)
    return swiglu_reference(y, gate_threshold) if swiglu else y
