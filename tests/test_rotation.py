"""Bases are orthogonal, PCA diagonalises, Hadamard is Hadamard; granularities map as the paper says."""

import pytest
import torch

from larosa.rotation import bases
from larosa.rotation.rotation import LayerwiseRotationMatrix, ResidualAdapter, Rotation, rotation_index


def assert_orthogonal(Q: torch.Tensor) -> None:
    identity = torch.eye(len(Q), dtype=torch.float64)
    assert float((Q.T @ Q - identity).abs().max()) < 1e-12


@pytest.mark.parametrize("size", [1, 2, 12, 20, 24, 28, 36, 48, 64, 576, 3584])
def test_hadamard(size: int) -> None:
    Q = bases.hadamard(size, seed=3)
    entries = Q * size**0.5
    torch.testing.assert_close(entries.abs(), torch.ones_like(entries))
    if size <= 576:
        assert_orthogonal(Q)
    else:
        assert float((Q[:, :64].T @ Q[:, :64] - torch.eye(64, dtype=torch.float64)).abs().max()) < 1e-12


@pytest.mark.parametrize("size", [3, 6, 42, 92])
def test_hadamard_refuses_unknown_sizes(size: int) -> None:
    with pytest.raises(bases.BasisError, match=f"size {size}"):
        bases.hadamard(size, seed=0)


@pytest.mark.parametrize("size", [4096, 5120, 8192, 3584])
def test_hadamard_exists_for_the_papers_models(size: int) -> None:
    factors = bases.hadamard_factors(size)
    product = 1
    for factor in factors:
        product *= factor
    assert product == size


def test_random_is_orthogonal_and_seeded() -> None:
    assert_orthogonal(bases.random(33, seed=1))
    assert torch.equal(bases.random(33, 1), bases.random(33, 1))
    assert not torch.equal(bases.random(33, 1), bases.random(33, 2))


def test_pca_diagonalises_by_falling_eigenvalue_with_fixed_signs() -> None:
    x = torch.randn(200, 20, dtype=torch.float64) * torch.arange(1, 21)
    S = x.T @ x / 200
    Q = bases.pca(S)
    assert_orthogonal(Q)
    rotated = Q.T @ S @ Q
    torch.testing.assert_close(rotated, torch.diag(rotated.diagonal()), atol=1e-9, rtol=0)
    assert (rotated.diagonal().diff() <= 0).all()
    assert (Q.gather(0, Q.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.mark.parametrize(("granularity", "adapters"), [("layer", 6), ("sublayer", 13), ("group", 2), ("model", 0)])
def test_adapters_by_granularity(granularity: str, adapters: int) -> None:
    index = rotation_index(7, granularity, group_size=3)
    assert Rotation(torch.eye(2, dtype=torch.float64).expand(14, 2, 2), index).adapters == adapters


def test_pieces_rotate_and_change_basis() -> None:
    x = torch.randn(5, 16)
    one = LayerwiseRotationMatrix(16).fit(torch.randn(40, 16))
    two = LayerwiseRotationMatrix(16, bases.random(16, 0))
    torch.testing.assert_close(one.unrotate(one.rotate(x)).float(), x)
    adapter = ResidualAdapter(one.Q, two.Q, torch.float64, torch.device("cpu"))
    torch.testing.assert_close(adapter(one.rotate(x)), two.rotate(x))
    assert adapter.nbytes == 16 * 16 * 8


def test_fit_refuses_what_cannot_work() -> None:
    with pytest.raises(ValueError, match="15 calibration vectors cannot span 16"):
        LayerwiseRotationMatrix(16).fit(torch.randn(15, 16))
    with pytest.raises(ValueError, match="NaN"):
        LayerwiseRotationMatrix(16).fit(torch.full((20, 16), float("nan")))
    with pytest.raises(ValueError, match="width 16"):
        LayerwiseRotationMatrix(16).fit(torch.randn(20, 8))
