"""The output-aware transform: explicit, not orthogonal, one D x D product in front of the readers of a norm.

For one norm, x is its output without gamma, W the stacked weights that read it with gamma folded in, S = E[x x^T]
and G = W^T W. With U the eigenvectors of `G^1/2 S G^1/2`, run `z = T x`, `T = U^T G^1/2`, keep the top-k of z, and
use weights `W T^-1`. Their columns are orthonormal, so the squared output error of a token is exactly the energy of
the z that are dropped: Top-K by |z| is the best choice for that token, and z is decorrelated.

T is stored in the model's dtype, in int8 (one scale an output) or in int4 (one scale for 64 inputs), scales in
float16; it is what really runs, and what the accounting counts. The weights undo T as it is stored: rounding it
moves the columns a little away from orthonormal, but leaves the model at level 0 as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from larosa.errors import LarosaError
from larosa.rotation import bases

GROUP = 64
_DAMPING = 1e-10


class TransformError(LarosaError):
    """A transform cannot be stored as asked."""


def output_aware(second_moment: Tensor, gram: Tensor) -> Tensor:
    """T [D, D] float64 from S and G, both [D, D] symmetric; eigenvalues of G are kept above 1e-10 of the largest."""
    values, vectors = torch.linalg.eigh(gram.double())
    root = (vectors * values.clamp_min(_DAMPING * float(values.max())).sqrt()) @ vectors.T
    transform: Tensor = bases.pca(root @ second_moment.double() @ root).T @ root
    return transform


def stored_bytes(D: int, storage: str, element_bytes: int) -> int:
    """Bytes of one transform as stored, scales included; all are read for every token."""
    if storage == "int8":
        return D * D + 2 * D
    if storage == "int4":
        return D * D // 2 + 2 * D * D // GROUP
    return D * D * element_bytes


class ExplicitTransform(nn.Module):
    """z = T x with T [D, D] as stored: `storage` model, int8 or int4; computed in the activation's dtype."""

    codes: Tensor
    scales: Tensor | None

    def __init__(self, matrix: Tensor, storage: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.storage = storage
        if storage == "model":
            codes, scales = matrix.to(dtype), None
        else:
            codes, scales = _quantise(matrix, storage)
        self.register_buffer("codes", codes, persistent=True)
        self.register_buffer("scales", scales, persistent=True)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """T [D, D] as it runs."""
        if self.scales is None:
            return self.codes.to(dtype)
        D = self.codes.shape[0]
        groups = self.codes.reshape(D, self.scales.shape[1], -1).to(dtype)
        return (groups * self.scales.to(dtype)[..., None]).reshape(D, D)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., D]; returns z of the same shape and dtype."""
        return x @ self.matrix(x.dtype).T


def _quantise(matrix: Tensor, storage: str) -> tuple[Tensor, Tensor]:
    """Round to nearest, symmetric. Codes [D, D] int8 (int4 values for int4), scales [D, groups] float16."""
    D = matrix.shape[0]
    largest, size = (127, D) if storage == "int8" else (7, GROUP)
    if D % size:
        raise TransformError(f"method.transform_storage={storage} needs a width that is a multiple of {size}, got {D}")
    groups = matrix.reshape(D, D // size, size)
    scales = (groups.abs().amax(-1) / largest).clamp_min(1e-7).half()
    codes = (groups / scales.double()[..., None]).round().clamp(-largest, largest)
    return codes.reshape(D, D).to(torch.int8), scales
