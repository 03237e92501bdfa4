"""Orthogonal bases of the residual stream: pca, random, hadamard, identity.

All are float64 matrices Q [D, D] with orthonormal columns; a vector x is rotated as `x @ Q`.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import hadamard as sylvester
from torch import Tensor

from larosa.errors import LarosaError

Integers = NDArray[np.int64]


class BasisError(LarosaError):
    """A basis does not exist at this size."""


def pca(second_moment: Tensor) -> Tensor:
    """Eigenvectors of an uncentred second moment by falling eigenvalue (section 2 of the paper).

    second_moment: [D, D] symmetric, any float dtype. Each column's largest entry is made positive, so that
    the result does not depend on the solver's choice of sign.
    """
    _values, vectors = torch.linalg.eigh(second_moment.double())
    vectors = vectors.flip(-1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    signed: Tensor = vectors * torch.where(largest < 0, -1.0, 1.0)
    return signed


def random(size: int, seed: int) -> Tensor:
    """A Haar-distributed orthogonal matrix (QR of a Gaussian with R's diagonal made positive)."""
    gaussian = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    q, r = torch.linalg.qr(gaussian)
    signed: Tensor = q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return signed


def hadamard(size: int, seed: int) -> Tensor:
    """A Hadamard matrix / sqrt(size) with seeded random signs on its inputs. Raises BasisError, see
    :func:`hadamard_factors`."""
    matrix = np.ones((1, 1), dtype=np.int64)
    for factor in hadamard_factors(size):
        matrix = np.kron(matrix, _paley(factor) if factor & (factor - 1) else sylvester(factor))
    signs = torch.randint(0, 2, (size, 1), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.from_numpy(matrix).double() * signs / math.sqrt(size)


def hadamard_factors(size: int) -> list[int]:
    """`size` as a product of orders of Paley's constructions (12, 20, 24, 28, 36, ...) and one power of two.

    Raises BasisError where there is none; cheap, so that a run can ask before weights load.
    """
    factors = _factors(size)
    if factors is None:
        raise BasisError(
            f"method.basis=hadamard: no Hadamard matrix of size {size} is known here (the size must factor into "
            "a power of two and orders of Paley's constructions); choose method.basis=random or pca"
        )
    return factors


@cache
def _factors(size: int) -> list[int] | None:
    if size & (size - 1) == 0:
        return [size]
    for order in range(size - size % 4, 11, -4):
        if size % order == 0 and _is_paley(order):
            rest = _factors(size // order)
            if rest is not None:
                return [order, *rest]
    return None


def _is_paley(order: int) -> bool:
    return (_is_prime(order - 1) and order % 4 == 0) or (_is_prime(order // 2 - 1) and (order // 2 - 1) % 4 == 1)


def _paley(size: int) -> Integers:
    """Paley I for size - 1 prime, Paley II for size / 2 - 1 prime and 1 mod 4."""
    q = size - 1
    if _is_prime(q):
        skew = np.zeros((size, size), dtype=np.int64)
        skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _jacobsthal(q)
        return skew + np.eye(size, dtype=np.int64)
    q = size // 2 - 1
    core = np.zeros((q + 1, q + 1), dtype=np.int64)
    core[0, 1:], core[1:, 0], core[1:, 1:] = 1, 1, _jacobsthal(q)
    plus, minus = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
    return np.kron(core, plus) + np.kron(np.eye(q + 1, dtype=np.int64), minus)


def _jacobsthal(q: int) -> Integers:
    character = -np.ones(q, dtype=np.int64)
    character[[i * i % q for i in range(1, q)]] = 1
    character[0] = 0
    index = np.arange(q)
    matrix: Integers = character[(index[None, :] - index[:, None]) % q]
    return matrix


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))
