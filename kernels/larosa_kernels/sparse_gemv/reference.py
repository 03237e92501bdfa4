"""y = sum over kept i of x_i weight[i, :] (+ bias) (+ residual), readable.

Weights lie input-major, [n, m], so that a dropped input is a row that nobody reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from larosa_kernels.select.reference import kept_mask


def sparse_gemv_reference(
    x: Tensor,
    keep: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """x: [B, n], keep: [B, 2], weight: [n, m] -> y [B, m] in x's dtype, summed in fp32 and rounded once.

    scale: [m] fp32 for an int8 weight. Rows of dropped inputs may hold anything, NaN included.
    """
    kept = kept_mask(x, keep)
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
