"""The Python interface as README documents it."""

from __future__ import annotations

import copy
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import larosa
from conftest import build_model
from larosa import (
    ArgumentError,
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


def fitted(width: int = 32, **more: Any) -> tuple[LaRoSAActivationSparsifier, Tensor]:
    """A sparsifier, and activations that it was fitted to."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, width, generator=generator) @ torch.randn(width, width, generator=generator)
    sparsifier = LaRoSAActivationSparsifier(width, {"sparsity": 0.5, **more})
    sparsifier.compute_rotation_matrix(x)
    return sparsifier, x


@pytest.mark.parametrize("basis", ["pca", "random", "hadamard", "identity"])
def test_what_is_fitted_is_in_the_state(basis: str, tmp_path: Path) -> None:
    sparsifier, x = fitted(basis=basis, seed=3)
    save_file(sparsifier.state_dict(), tmp_path / "a.safetensors")
    loaded = LaRoSAActivationSparsifier(32, LaRoSAConfig(sparsity=0.5, basis=basis, seed=3))
    assert loaded.load_state_dict(load_file(tmp_path / "a.safetensors")).missing_keys == []
    assert torch.equal(loaded(x), sparsifier(x))
    assert torch.equal(copy.deepcopy(sparsifier)(x), sparsifier(x))
    inside = torch.nn.Sequential(LaRoSAActivationSparsifier(32, LaRoSAConfig(sparsity=0.5, basis=basis, seed=3)))
    inside.load_state_dict(torch.nn.Sequential(sparsifier).state_dict())
    assert torch.equal(inside(x), sparsifier(x))


def test_a_state_serves_every_level_and_no_other_sparsifier() -> None:
    sparsifier, x = fitted()
    state = sparsifier.state_dict()
    lower, expected = LaRoSAActivationSparsifier(32, {"sparsity": 0.25, "ties": "keep"}), fitted(sparsity=0.25)[0]
    lower.load_state_dict(state)
    assert torch.equal(lower(x), expected(x))
    assert not torch.equal(lower(x), sparsifier(x))
    others = {
        "of basis=pca, seed 0; this sparsifier is of basis=random, seed 0": (32, {"basis": "random"}),
        "this sparsifier is of basis=identity": (32, {"basis": "identity"}),
        "the state is of width 32, this sparsifier is of width 16": (16, {}),
    }
    for message, (width, more) in others.items():
        other = LaRoSAActivationSparsifier(width, {"sparsity": 0.5, **more})
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ArgumentError, match=message):
            other.load_state_dict(state)
        assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())
    seeded = LaRoSAActivationSparsifier(32, {"sparsity": 0.5, "basis": "random", "seed": 1})
    with pytest.raises(ArgumentError, match="seed 0; this sparsifier is of basis=random, seed 1"):
        seeded.load_state_dict(fitted(basis="random")[0].state_dict())
    LaRoSAActivationSparsifier(32, {"sparsity": 0.5, "seed": 1}).load_state_dict(state)  # pca draws nothing


def test_a_state_that_says_nothing_of_its_rotation_is_refused() -> None:
    sparsifier, x = fitted()
    old = {"rotation.Q": sparsifier.rotation.Q}
    with pytest.raises(RuntimeError, match="fitted"):
        LaRoSAActivationSparsifier(32, LaRoSAConfig(sparsity=0.5)).load_state_dict(old)
    fresh = LaRoSAActivationSparsifier(32, LaRoSAConfig(sparsity=0.5))
    sparsifier.load_state_dict(fresh.state_dict())
    with pytest.raises(ArgumentError, match="compute_rotation_matrix"):
        sparsifier(x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, x: s(x[:, :16]), r"width 32, \[\.\.\., 32\], got \[500, 16\]"),
        (lambda s, x: s(x.long()), r"floating-point tensor, got torch\.int64"),
        (lambda s, x: s(x > 0), r"got torch\.bool"),
        (lambda s, x: s(x.tolist()), "got list"),
        (lambda s, x: s(x.to("meta")), "on meta, the rotation is on cpu"),
        (lambda s, x: s(x, "mpl"), "'attention' or 'mlp', got 'mpl'"),
        (lambda s, x: s.compute_rotation_matrix(x[:, :16]), r"width 32"),
        (lambda s, x: s.compute_rotation_matrix(x[:9]), "9 calibration vectors cannot span 32"),
        (lambda s, x: s.compute_rotation_matrix(x * torch.nan), "NaN"),
        (lambda s, x: s.compute_rotation_matrix(x.long()), "floating"),
        (lambda s, x: s.compute_rotation_matrix(None), "got NoneType"),
        (lambda s, x: s.rotation.rotate(x[:, :16]), "width 32"),
        (lambda s, x: s.rotation.unrotate(x[0, :16]), r"got \[16\]"),
        (lambda s, x: s.rotation.fit(x[:, :16]), "width 32"),
        (lambda s, x: s.top_k["mlp"](x[:, :16]), "width 32"),
        (lambda s, x: s.top_k["mlp"](x.int()), r"torch\.int32"),
        (lambda _, x: LaRoSAActivationSparsifier(0, {"sparsity": 0.5}), "at least 1, got 0"),
        (lambda _, x: LaRoSAActivationSparsifier(32.0, {"sparsity": 0.5}), r"got 32\.0"),
        (lambda _, x: LaRoSAActivationSparsifier(32, 0.5), "LaRoSAConfig or a mapping"),
        (lambda _, x: LaRoSAActivationSparsifier(32, {"sparsity": 2}), "sparsity: Input should be less than 1"),
        (lambda _, x: fitted(coefficients={"h1": 2.5, "h2": 1, "h3": 1, "h4": 1}), r"attention: .* below 1"),
        (
            lambda _, x: fitted(basis="weight_svd", granularity="sublayer"),
            "takes basis pca, random, hadamard, identity",
        ),
        (lambda _, x: fitted(importance="column_norm"), "importance=magnitude"),
        (lambda _, x: fitted(token_policy={"kind": "decode_only", "n": 0, "fraction": 1}), "all tokens"),
        (lambda _, x: fitted(width=22, basis="hadamard"), "Hadamard matrix of size 22"),
        (lambda _, x: LayerwiseRotationMatrix(-3), "got -3"),
        (lambda _, x: LayerwiseRotationMatrix(3, torch.eye(4)), r"matrix \[3, 3\], got \[4, 4\]"),
        (lambda _, x: TopKSparsification(8, 1.5), r"\[0, 1\], got 1\.5"),
        (lambda _, x: TopKSparsification(8, 0.5, "first"), "'strict' or 'keep', got 'first'"),
        (lambda _, x: TopKSparsification(8, 0.5, importance=-torch.ones(8)), "not negative"),
        (lambda _, x: TopKSparsification(8, 0.5, importance=[1] * 8), "got list"),
        (lambda _, x: TopKSparsification(8, 0.5, importance=torch.ones(2, 8)), r"importance must be \[8\]"),
        (lambda _, x: LayerwiseRotationMatrix(3, "eye"), "got str"),
        (
            lambda _, x: ResidualAdapter(torch.ones(4, 5), torch.eye(5), torch.float32, x.device),
            r"\[D, D\], got \[4, 5\]",
        ),
        (lambda _, x: ResidualAdapter(torch.eye(4), torch.eye(5), torch.float32, x.device), r"\[4, 4\], got \[5, 5\]"),
        (lambda _, x: ResidualAdapter(torch.eye(4), torch.eye(4), torch.float32, x.device)(x), "width 4"),
    ],
)
def test_what_is_wrong_with_an_argument_is_said(call: Any, message: str) -> None:
    sparsifier, x = fitted()
    with pytest.raises(larosa.LarosaError, match=message):
        call(sparsifier, x)


def test_seeds_of_63_bits_are_taken() -> None:
    for basis in ("random", "hadamard"):
        fitted(basis=basis, seed=2**63 - 1)
        config = LaRoSAConfig(sparsity=0.4, basis=basis, seed=2**63 - 1)
        with sparsify(build_model("llama"), torch.randint(384, (2, 8)), config) as handle:
            assert not torch.equal(handle.plan.rotation.matrices[0], handle.plan.rotation.matrices[1])


def test_public_names_can_be_listed_and_had() -> None:
    assert set(larosa.__all__) == {*larosa._HOME, "__version__"}
    assert set(larosa.__all__) <= set(dir(larosa))
    assert larosa._HOME["handle_of"] == "larosa.sparsity.handle"
    assert all(getattr(larosa, name) is not None for name in larosa._HOME)
    with pytest.raises(AttributeError, match="module 'larosa' has no attribute 'sparsifi'"):
        larosa.sparsifi  # noqa: B018


def test_version_is_the_distribution_s(tmp_path: Path) -> None:
    assert larosa.__version__ == metadata.version("larosa")
    package = Path(larosa.__file__).parent
    needed = ("exports/__init__.py", "exports/transformers_hook.py", "records/__init__.py", "records/version.py")
    for name in ("__init__.py", *needed):  # all that `import larosa` reads
        (tmp_path / "larosa" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "larosa" / name).write_bytes((package / name).read_bytes())

    def version() -> str:
        code = "import larosa, sys; print(larosa.__version__, 'torch' in sys.modules)"
        asked = [sys.executable, "-c", code]
        done = subprocess.run(asked, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
        return done.stdout.strip() or done.stderr

    assert version() == f"{metadata.version('larosa')} False"
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "larosa"\nversion = "7.8.9"\n')
    assert version() == "7.8.9 False"  # a checkout that is not installed is not what is installed


def test_public_names_are_the_pieces_of_run_py() -> None:
    from larosa.rotation import rotation, simulated
    from larosa.sparsity import handle

    assert simulated.LayerwiseRotationMatrix is LayerwiseRotationMatrix
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
