"""The Python interface as README documents it."""

from __future__ import annotations

import pytest
import torch

from conftest import build_model
from larosa import (
    LaRoSAActivationSparsifier,
    LaRoSAConfig,
    LayerwiseRotationMatrix,
    ResidualAdapter,
    TopKSparsification,
    sparsify,
)


def test_sparsifier_rotates_drops_and_rotates_back() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(32, 32, generator=generator)
    calibration = torch.randn(500, 32, generator=generator) @ mixing
    sparsifier = LaRoSAActivationSparsifier(32, LaRoSAConfig(sparsity=0.5))
    Q = sparsifier.compute_rotation_matrix(calibration)
    x = calibration[:3]
    for block, alpha in {"attention": 0.8, "mlp": 0.8}.items():
        y = sparsifier(x, block_type=block)
        z = y.double() @ Q
        assert ((z.abs() > 1e-4).sum(-1) == 32 - round(alpha * 0.5 * 32)).all()
        kept = z.abs() > 1e-4
        torch.testing.assert_close(z[kept], (x.double() @ Q)[kept], rtol=1e-4, atol=1e-4)
    assert y.dtype == x.dtype
    with pytest.raises(ValueError, match="'attention' or 'mlp'"):
        sparsifier(x, block_type="mpl")
    with pytest.raises(ValueError, match="compute_rotation_matrix"):
        LaRoSAActivationSparsifier(32, LaRoSAConfig(sparsity=0.5))(x)


def test_sparsifier_honours_the_basis() -> None:
    sparsifier = LaRoSAActivationSparsifier(32, LaRoSAConfig(sparsity=0.5, basis="hadamard"))
    Q = sparsifier.compute_rotation_matrix(torch.randn(3, 32))
    torch.testing.assert_close(Q.abs(), torch.full((32, 32), 32**-0.5, dtype=torch.float64))


def test_public_names_are_the_pieces_of_run_py() -> None:
    from larosa.rotation import rotation
    from larosa.sparsity import handle

    assert handle.LayerwiseRotationMatrix is LayerwiseRotationMatrix
    assert handle.TopKSparsification is TopKSparsification
    assert rotation.ResidualAdapter is ResidualAdapter


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="less than 1"):
        LaRoSAConfig(sparsity=1.0)
    with pytest.raises(ValueError, match="sparcity"):
        LaRoSAConfig(sparcity=0.4)


def test_tokens_are_checked(tokens: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\[N, T\] int64"):
        sparsify(build_model("llama"), tokens[0], LaRoSAConfig(sparsity=0.4))


def test_sparsify_a_whole_model(tokens: torch.Tensor) -> None:
    model = build_model("qwen2", dtype=torch.float32, tied=True)
    dense = model(tokens).logits
    handle = sparsify(model, tokens, LaRoSAConfig(sparsity=0.4))
    assert handle.kept_bytes > 0
    assert handle.adapter_bytes == 4 * 48 * 48 * 4
    assert not torch.allclose(model(tokens).logits, dense)
    handle.remove()
    assert torch.equal(model(tokens).logits, dense)
