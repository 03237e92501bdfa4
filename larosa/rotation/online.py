"""The output-aware transform: online, not orthogonal, before the consumers of a norm; full or block-diagonal.

For one norm, x is its output without gamma, W the stacked weights of its consumers with gamma folded in, S = E[x x^T]
and G = W^T W. With U the eigenvectors of `G^1/2 S G^1/2`, run `z = T x`, `T = U^T G^1/2`, keep the top-k of z, and
use weights `W T^-1`. Their columns are orthonormal, so the squared output error of a token is exactly the energy of
the dropped z: Top-K by |z| is the best choice for that token, and z is decorrelated. A block-diagonal transform of
block size b does the same with the S and G of each block: it takes b / D of the bytes and ignores the coupling of
blocks.

T runs as `T = T' diag(c)` with the columns of T' of length 1: c takes gamma's place in the norm, where it is free, and
T' is stored in the model's dtype, in int8 (one scale per output) or in int4 (one scale per 64 inputs), scales in
float16. The stored transform runs, and the accounting counts its bytes. The weights invert T' as stored: rounding makes
the columns slightly non-orthonormal, but leaves the model at level 0 unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from larosa.errors import LarosaError
from larosa.models.inputs import check_floating
from larosa.rotation import bases

GROUP = 64
_DAMPING = 1e-10
_SMALLEST_GAIN = 1e-6


class TransformError(LarosaError):
    """A transform cannot be stored in this format."""


def output_aware(second_moment: Tensor, gram: Tensor, block: int | None = None) -> Tensor:
    """T [D / block, block, block] float64 from S and G, both [D, D] symmetric.

    Eigenvalues of a block's G are kept above 1e-10 of the largest. `block` divides D; None is one block of D.
    """
    D = len(gram)
    size = block or D
    transforms = torch.empty(D // size, size, size, dtype=torch.float64, device=gram.device)
    for i, start in enumerate(range(0, D, size)):
        channels = slice(start, start + size)
        values, vectors = torch.linalg.eigh(gram[channels, channels].double())
        root = (vectors * values.clamp_min(_DAMPING * float(values.max())).sqrt()) @ vectors.T
        transforms[i] = bases.pca(root @ second_moment[channels, channels].double() @ root).T @ root
    return transforms


def split_gain(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """T' and c of `T = T' diag(c)`: blocks [..., n, b, b] of T -> the same, columns of length 1; c [..., n * b]."""
    lengths = blocks.norm(dim=-2)
    largest = lengths.flatten(-2).amax(-1)[..., None, None]
    gain = lengths.clamp_min(_SMALLEST_GAIN * largest)
    return blocks / gain[..., None, :], gain.flatten(-2)


def check_block(D: int, block: int | None, storage: str) -> None:
    """Raise TransformError where blocks do not fill D, or int4 groups do not fill a block."""
    size = block or D
    if D % size:
        raise TransformError(f"method.block_size={size} must divide the model's width {D}")
    if storage == "int4" and size % GROUP:
        raise TransformError(f"method.transform_dtype=int4 needs blocks of a multiple of {GROUP}, got {size}")


def stored_bytes(D: int, block: int | None, storage: str, element_bytes: int) -> int:
    """Bytes of one transform as stored, scales included; all are read for every token."""
    size = block or D
    if storage == "int8":
        return D * size + 2 * D
    if storage == "int4":
        return D * size // 2 + 2 * D * size // GROUP
    return D * size * element_bytes


def quantise(blocks: Tensor, storage: str) -> tuple[Tensor, Tensor]:
    """Round to nearest, symmetric. blocks [..., n, b, b] -> qweight int8 (of int4 range for int4), scales float16.

    Scales are [..., n, b, groups]. Raises TransformError where groups do not fit.
    """
    size = blocks.shape[-1]
    check_block(size, None, storage)
    largest, group = (127, size) if storage == "int8" else (7, GROUP)
    groups = blocks.reshape(*blocks.shape[:-1], size // group, group)
    scales = (groups.abs().amax(-1) / largest).clamp_min(1e-7).half()
    qweight = (groups / scales.to(blocks.dtype)[..., None]).round().clamp(-largest, largest)
    return qweight.flatten(-2).to(torch.int8), scales


def restored(qweight: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The dequantised blocks."""
    groups = qweight.reshape(*scales.shape, -1).to(dtype)
    blocks: Tensor = (groups * scales.to(dtype)[..., None]).flatten(-2)
    return blocks


class OnlineTransform(nn.Module):
    """z = T' x with T' in blocks [n, b, b] as stored: `storage` model, int8 or int4; in the activation's dtype."""

    qweight: Tensor
    scales: Tensor | None

    def __init__(self, blocks: Tensor, storage: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.storage = storage
        if storage == "model":
            qweight, scales = blocks.to(dtype), None
        else:
            qweight, scales = quantise(blocks, storage)
        self.register_buffer("qweight", qweight, persistent=True)
        self.register_buffer("scales", scales, persistent=True)

    def blocks(self, dtype: torch.dtype) -> Tensor:
        """T' [n, b, b] as it runs."""
        return self.qweight.to(dtype) if self.scales is None else restored(self.qweight, self.scales, dtype)

    def inverse(self) -> Tensor:
        """The inverse of T' as it runs, [D, D] float64."""
        whole: Tensor = torch.block_diag(*torch.linalg.inv(self.blocks(torch.float64)))  # type: ignore[no-untyped-call]
        return whole

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., D]; returns z of the same shape and dtype. Raises ActivationError where it is not floating."""
        check_floating(x)
        return block_product(x, self.blocks(x.dtype))


def block_product(x: Tensor, blocks: Tensor) -> Tensor:
    """Each block [n, b, b] times its own channels of x [..., n * b]."""
    if len(blocks) == 1:
        return x @ blocks[0].T
    by_block = x.reshape(*x.shape[:-1], len(blocks), -1)
    return torch.einsum("...nb,ncb->...nc", by_block, blocks).flatten(-2)
