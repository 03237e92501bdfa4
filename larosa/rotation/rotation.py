"""The rotations of a whole model: which basis each norm's output lives in.

Granularity (section 2 and Table 6 of the paper): one Q per layer serves h1 and h3; per sublayer, each has its
own; per group, m layers share one; per model, all share one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from larosa.config.run import MethodConfig
from larosa.errors import ArgumentError
from larosa.models.formats import Quantised
from larosa.models.inputs import check_activations, check_matrix, check_width
from larosa.rotation import bases

_SEEDS = 2**63
"""A generator's seed is smaller."""


def rotation_index(layers: int, granularity: str, group_size: int) -> list[tuple[int, int]]:
    """Per layer, which matrix serves (h1, h3)."""
    match granularity:
        case "layer":
            return [(i, i) for i in range(layers)]
        case "sublayer":
            return [(2 * i, 2 * i + 1) for i in range(layers)]
        case "group":
            return [(i // group_size, i // group_size) for i in range(layers)]
        case "model":
            return [(0, 0)] * layers
        case _:
            raise ValueError(f"granularity must be layer, sublayer, group or model, got {granularity!r}")


@dataclass(frozen=True)
class Rotation:
    """`matrices` [M, D, D] float64, orthogonal; `index[layer]` names those of h1 and h3."""

    matrices: Tensor
    index: list[tuple[int, int]]

    def at(self, layer: int, site: str) -> Tensor:
        """The matrix [D, D] of h1 or h3."""
        return self.matrices[self.index[layer][0 if site == "h1" else 1]]

    @property
    def adapters(self) -> int:
        """D x D products per token of the absorbed form: basis changes along the residual stream."""
        borders = sum(a[0] != b[0] for a, b in zip(self.index, self.index[1:], strict=False))
        return borders + sum(attention != mlp for attention, mlp in self.index)


def build_rotation(
    method: MethodConfig,
    second_moments: Tensor | None,
    layers: int,
    D: int,
    seed: int,
    device: torch.device | None = None,
) -> Rotation:
    """The rotation of a method, its matrices on the CPU.

    second_moments: [layers, 2, D, D] of h1 and h3 (see calibration.statistics) for `pca`, or of the weights
    for `weight_svd`; they are decomposed one by one on `device`. The moment of a group or model
    is the sum over the h1 of its layers. The identity needs one matrix and no change of basis at any granularity.
    """
    if method.basis == "identity":
        return Rotation(torch.eye(D, dtype=torch.float64)[None], [(0, 0)] * layers)
    index = rotation_index(layers, method.granularity, method.group_size)
    count = max(max(pair) for pair in index) + 1
    spectral = method.basis in ("pca", "weight_svd")
    if spectral and second_moments is None:
        raise ValueError(f"basis={method.basis} needs the moments that it diagonalises")
    matrices = torch.empty(count, D, D, dtype=torch.float64)
    for which in tqdm(range(count), desc=f"{method.basis} bases", unit="matrix", leave=False):
        if spectral and second_moments is not None:
            matrices[which] = bases.pca(_moment(second_moments, index, which).to(device))
        else:
            make = bases.random if method.basis == "random" else bases.hadamard
            matrices[which] = make(D, (seed * 1_000_003 + which) % _SEEDS)
    return Rotation(matrices, index)


def _moment(second_moments: Tensor, index: list[tuple[int, int]], which: int) -> Tensor:
    """The moment [D, D] float64 that matrix `which` diagonalises."""
    total = torch.zeros(second_moments.shape[-2:], dtype=torch.float64)
    for layer, (attention, mlp) in enumerate(index):
        if which in (attention, mlp):
            total += second_moments[layer, 0 if which == attention else 1]
    return total


class LayerwiseRotationMatrix(nn.Module):
    """One orthogonal Q [D, D] (float64) that rotates the last dimension.

    `fit` takes activations [..., D]; `rotate` and `unrotate` compute in the matrix's dtype. All raise ArgumentError for
    another width, ActivationError where activations are not floating.
    """

    Q: Tensor

    def __init__(self, hidden_size: int, matrix: Tensor | None = None) -> None:
        super().__init__()
        check_width(hidden_size)
        if matrix is not None:
            check_matrix(matrix, hidden_size)
        identity = torch.eye(hidden_size, dtype=torch.float64)
        self.register_buffer("Q", identity if matrix is None else matrix, persistent=True)

    def fit(self, activations: Tensor) -> LayerwiseRotationMatrix:
        """Set Q to the eigenvectors of the activations' uncentred second moment, by falling eigenvalue."""
        check_activations(activations, self.Q.shape[0])
        rows = activations.detach().reshape(-1, activations.shape[-1]).double()
        if len(rows) < rows.shape[1]:
            raise ArgumentError(
                f"{len(rows)} calibration vectors cannot span {rows.shape[1]} dimensions; give at least {rows.shape[1]}"
            )
        if not bool(rows.isfinite().all()):
            raise ArgumentError("calibration activations hold NaN or infinity")
        self.Q = bases.pca(rows.T @ rows / len(rows)).contiguous()  # as files hold it
        return self

    def rotate(self, x: Tensor) -> Tensor:
        """x Q, in Q's dtype. x: [..., D]."""
        check_activations(x, self.Q.shape[0], self.Q.device)
        return x.to(self.Q.dtype) @ self.Q

    def unrotate(self, x: Tensor) -> Tensor:
        """x Q^T, in Q's dtype. x: [..., D]."""
        check_activations(x, self.Q.shape[0], self.Q.device)
        return x.to(self.Q.dtype) @ self.Q.T


class ResidualAdapter(nn.Module):
    """Changes basis from `Q_from` to `Q_to`, [D, D] each: x -> x (Q_from^T Q_to), one D x D product in `dtype`.

    Raises ArgumentError for matrices that are not square and of one width, and for activations of another width.
    """

    matrix: Tensor

    def __init__(self, Q_from: Tensor, Q_to: Tensor, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        check_matrix(Q_from)
        check_matrix(Q_to, len(Q_from))
        product = Q_from.double().T @ Q_to.double()
        self.register_buffer("matrix", product.to(device=device, dtype=dtype), persistent=True)
        self.quantised: Quantised | None = None

    def round_to(self, quantised: Quantised) -> None:
        """Run the dequantised values of `quantised` from now on."""
        self.quantised, self.matrix = quantised, quantised.dense(self.matrix.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the matrix as stored, all read for every token."""
        return (
            self.matrix.numel() * self.matrix.element_size() if self.quantised is None else self.quantised.stored_bytes
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., D] in basis Q_from; returns it in basis Q_to."""
        check_activations(x, self.matrix.shape[0])
        return x.to(self.matrix.device) @ self.matrix
