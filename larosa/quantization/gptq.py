"""GPTQ in the decoder's formats: inputs that are rounded later compensate the rounding errors of earlier ones.

GPTQ (Frantar et al., arXiv 2210.17323, section 3.3, in its Cholesky form). Libraries group along the
input. Here a scale belongs to an output (w8), or to 64 outputs of one input (w4) and is computed when that input is
rounded. So no group couples inputs, and they are rounded by falling second moment: the most expensive inputs are
rounded while most others are left to compensate.
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
    plain = quantised(wide, scheme)  # w8: the scales of the uncorrected weights
    qweight = torch.empty(matrix.shape, dtype=torch.int8, device=matrix.device)
    scales = plain.scale.clone()
    for start in range(0, len(left), _BLOCK):
        here = slice(start, start + _BLOCK)
        block_factor, block = factor[here, here], left[here]
        errors = torch.empty_like(block)
        for i, row in enumerate(block):
            at = order[start + i]
            rounded = on_scales(row[None], plain.scale) if scheme == "w8" else quantised(row[None], scheme)
            qweight[at] = rounded.qweight[0]
            if scheme != "w8":
                scales[:, at] = rounded.scale[:, 0]
            errors[i] = (row - rounded.dense(torch.float32)[0]) / block_factor[i, i]
            block[i + 1 :] -= block_factor[i, i + 1 :, None] * errors[i]
        left[start + _BLOCK :] -= factor[here, start + _BLOCK :].T @ errors
    return Quantised(scheme, qweight, scales)


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
    inverse_factor: Tensor = upper
    return inverse_factor
