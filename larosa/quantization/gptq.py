"""GPTQ on the decoder's grids: what rounding one input's weights gets wrong, inputs that are rounded later make up for.

GPTQ (Frantar et al., arXiv 2210.17323, section 3.3, in its Cholesky form). Libraries have it with groups along the
input; here a scale belongs to an output (w8), or to 64 outputs of one input (w4), found when that input's turn comes.
So no group ties inputs together, and they are taken in the order of their squares, the largest first: what costs most
is rounded while most others are left to make up for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from larosa.models.formats import Quantised, QuantizationError, on_scales, quantised

_DAMPING = 0.01
"""Added to the diagonal, of its mean: GPTQ's own."""
_BLOCK = 64
"""Inputs that are rounded before those after them are corrected at once."""


def fed_back(matrix: Tensor, moments: Tensor, scheme: str) -> Quantised:
    """Round matrix [n, m] for inputs of second moments [n, n]; `scheme`: w8 or w4_out.

    Raises QuantizationError where the moments are not those of finite inputs, or the matrix is not finite.
    """
    order = moments.diagonal().argsort(descending=True, stable=True)
    factor = _factor(moments[order][:, order].double()).to(torch.float32)
    left, wide = matrix.float()[order], matrix.float()
    plain = quantised(wide, scheme)  # w8: the scales, of the weights as they are
    codes = torch.empty(matrix.shape, dtype=torch.int8, device=matrix.device)
    scales = plain.scale.clone()
    for start in range(0, len(left), _BLOCK):
        here = slice(start, start + _BLOCK)
        own, block = factor[here, here], left[here]
        errors = torch.empty_like(block)
        for i, row in enumerate(block):
            at = order[start + i]
            found = on_scales(row[None], plain.scale) if scheme == "w8" else quantised(row[None], scheme)
            codes[at] = found.qweight[0]
            if scheme != "w8":
                scales[:, at] = found.scale[:, 0]
            errors[i] = (row - found.dense(torch.float32)[0]) / own[i, i]
            block[i + 1 :] -= own[i, i + 1 :, None] * errors[i]
        left[start + _BLOCK :] -= factor[here, start + _BLOCK :].T @ errors
    return Quantised(scheme, codes, scales)


def _factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse of the damped moments [n, n], float64."""
    diagonal = moments.diagonal()
    damped = moments + _DAMPING * diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny) * torch.eye(
        len(moments), dtype=moments.dtype, device=moments.device
    )
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed) or not bool(torch.isfinite(lower).all()):
        raise QuantizationError(
            "gptq: the second moments of the inputs have no Cholesky factor: calibrate on more tokens"
        )
    upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
    if int(failed):
        raise QuantizationError("gptq: the inverse of the second moments has no Cholesky factor: use more tokens")
    found: Tensor = upper
    return found
