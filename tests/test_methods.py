"""Each rival method against an independent few-line reference on a tiny model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_schedule import ALL, method, schedule
from torch import Tensor

from conftest import build_model
from larosa.calibration.calibrator import Calibrator
from larosa.calibration.statistics import CalibrationError
from larosa.config.run import MethodConfig
from larosa.data.tokens import TokenBlock
from larosa.evaluation import parity
from larosa.evaluation.accounting import account
from larosa.evaluation.sparsity import SparsityMeter
from larosa.methods.registry import METHODS
from larosa.models.sites import ModelShape
from larosa.rotation.online import split_gain
from larosa.sparsity.handle import PlanError, SparsityHandle, apply
from larosa.sparsity.level_override import LevelOverrides
from larosa.sparsity.schedule import ScheduleError, make_levels
from larosa.sparsity.site import SparseSite


@pytest.fixture(autouse=True)
def cache(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path))


def applied(model: torch.nn.Module, tokens: Tensor, chosen: MethodConfig, sparsity: float = 0.5) -> SparsityHandle:
    shape = ModelShape.of(model.config)
    sparsity = 0.3 if chosen.name == "cats" else sparsity
    levels = METHODS[chosen.name].levels(chosen, shape, schedule("uniform"), sparsity, "tiny")
    calibrator = Calibrator(model, TokenBlock(tokens, "t", 1, tokens.numel(), "x"), {"source": "test"}, 2, 0)
    return apply(model, METHODS[chosen.name].plan(chosen, shape, levels, ALL, calibrator))


def inputs(model: torch.nn.Module, tokens: Tensor, path: str) -> Tensor:
    """What the linear at `path` reads, masked where the model is sparse."""
    seen: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_hook(lambda _m, args, _y: seen.append(args[0]))
    model(tokens)
    hook.remove()
    return seen[0]


def test_wina_keeps_the_largest_products_with_column_norms(tokens: Tensor) -> None:
    model = build_model("llama")
    mlp = model.model.layers[0].mlp
    dense = inputs(model, tokens, "model.layers.0.self_attn.q_proj")
    attention = model.model.layers[0].self_attn
    stacked = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    with applied(model, tokens, method("wina")):
        sparse = inputs(model, tokens, "model.layers.0.self_attn.q_proj")
        assert sparse is not None
        assert mlp is model.model.layers[0].mlp
    keep = (dense.abs() * stacked.norm(dim=0)).topk(24, dim=-1).indices
    expected = torch.zeros_like(dense).scatter(-1, keep, dense.gather(-1, keep))
    torch.testing.assert_close(sparse, expected)
    plain = dense.abs().topk(24, dim=-1).indices.sort(-1).values
    assert not torch.equal(plain, keep.sort(-1).values)  # the weighting matters on this model


def test_wina_transform_is_exact_and_makes_columns_orthogonal(tokens: Tensor) -> None:
    model = build_model("qwen2", tied=True)
    dense = parity.logits(model, tokens)
    with applied(model, tokens, method("wina/transform")) as handle:
        for layer in model.model.layers:
            for linear in (layer.self_attn.k_proj, layer.mlp.gate_proj):
                gram = linear.weight.T @ linear.weight
                off = gram - torch.diag(gram.diagonal())
                assert float(off.abs().max()) < 1e-5 * float(gram.diagonal().max())
        with handle.level_zero():
            assert float((parity.logits(model, tokens) - dense).norm() / dense.norm()) < 1e-10
    assert torch.equal(parity.logits(model, tokens), dense)


class Watched:
    """An observer that keeps what every site was given and made of it."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def observe(self, site: SparseSite, _x: Tensor, _y: Tensor, z: Tensor, z_sparse: Tensor) -> None:
        self.found[site.layer, site.site] = (z, z_sparse)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("sparsity", [0.1, 0.25, 0.4, 0.5, 0.7])
def test_the_official_preset_drops_what_the_official_code_drops(
    sparsity: float, dtype: torch.dtype, tokens: Tensor
) -> None:
    """Bit for bit at all sites: k = int((1 - alpha s) width), and all of at least the k-th magnitude stay."""
    model = build_model("llama", dtype=dtype)
    shape, watched = ModelShape.of(model.config), Watched()
    chosen, alphas = method("larosa/official"), {"h1": 0.8, "h2": 1.2, "h3": 0.8, "h4": 1.2}
    levels = make_levels(shape, schedule("official", metric="nominal"), sparsity, "tiny", chosen.rounding)
    calibrator = Calibrator(model, TokenBlock(tokens, "t", 1, tokens.numel(), "x"), {"source": "test"}, 2, 0)
    plan = METHODS["larosa"].plan(chosen, shape, levels, ALL, calibrator)
    with apply(model, plan) as handle, handle.observed_by(watched):
        model(tokens)
        overrides = LevelOverrides(handle, None)
        for site in handle.sites:
            assert overrides.selector(site, sparsity * alphas[site.site]).k == levels.kept[site.site][site.layer]
    assert len(watched.found) == 5 * 4
    for (layer, site), (z, z_sparse) in watched.found.items():
        k = int((1 - sparsity * alphas[site]) * z.shape[-1])
        kth = z.abs().topk(k, dim=-1).values[..., -1:]
        assert torch.equal(z_sparse, z * (z.abs() >= kth))
        assert levels.kept[site][layer] == k
    planned = account(plan)["planned_sparsity"]
    assert planned["h1"][0] == 1 - int((1 - sparsity * 0.8) * 48) / 48  # what is counted is what stays


def test_teal_thresholds_are_those_of_its_code_to_a_bin(tokens: Tensor) -> None:
    """TEAL's `find_histogram` and `icdf` (FasterDecoding/TEAL, utils.py): interpolated between centres of the bins."""
    model = build_model("llama")
    values = inputs(model, tokens, "model.layers.2.mlp.down_proj").float().reshape(-1).sort().values
    edge = int(0.01 * len(values))
    bins = torch.cat([values[:1], torch.linspace(float(values[edge]), float(values[-edge]), 9_999), values[-1:]])
    counts, centres = torch.histogram(values, bins=bins).hist.double(), ((bins[:-1] + bins[1:]) / 2).double()
    for level in (0.25, 0.4, 0.5, 0.75):
        with applied(model, tokens, method("teal"), sparsity=level) as handle:
            assert handle.plan.thresholds is not None
            found, wanted = handle.plan.thresholds["h4"][2], handle.plan.levels.level["h4"][2]
        cumulative = counts.cumsum(0)
        at = int(torch.searchsorted(cumulative, (0.5 + wanted / 2) * counts.sum()))
        inside = float(((0.5 + wanted / 2) * counts.sum() - cumulative[at - 1]) / (cumulative[at] - cumulative[at - 1]))
        expected = float(centres[at - 1] + inside * (centres[at] - centres[at - 1]))
        gap = float((values.double() - expected).abs().topk(3, largest=False).values.max())  # few values: wide gaps
        assert found == pytest.approx(expected, abs=max(2 * gap, float(bins[2] - bins[1])))


def test_teal_zeroes_what_its_histogram_says(tokens: Tensor) -> None:
    model = build_model("llama")
    path = "model.layers.2.mlp.down_proj"
    values = inputs(model, tokens, path).float().reshape(-1)
    with applied(model, tokens, method("teal"), sparsity=0.4) as handle:
        assert handle.plan.thresholds is not None
        threshold = handle.plan.thresholds["h4"][2]
        sparse = inputs(model, tokens, path)
    expected = float(values.double().quantile(0.5 + 0.4 / 2))
    assert threshold == pytest.approx(expected, rel=2e-3)
    assert float(sparse[sparse != 0].abs().min()) > threshold
    level = float((sparse == 0).double().mean())
    assert 0.25 < level < 0.55  # calibrated on the dense model, met only roughly on the sparse one


def test_teal_refuses_the_open_tail(tokens: Tensor) -> None:
    with pytest.raises(CalibrationError, match="open tail"):
        applied(build_model("llama"), tokens, method("teal"), sparsity=0.985)


def test_cats_skips_neurons_whose_gate_is_small(tokens: Tensor) -> None:
    model = build_model("llama")
    shape = ModelShape.of(model.config)
    gate = inputs(model, tokens, "model.layers.0.mlp.gate_proj")
    mlp = model.model.layers[0].mlp
    hidden = torch.nn.functional.silu(mlp.gate_proj(gate))
    found = METHODS["cats"].levels(method("cats"), shape, schedule("uniform"), 0.3, "tiny")
    neurons = found.level["h4"][0]
    assert neurons == pytest.approx(0.3 * shape.layer_weights / (2 * 48 * 80))
    calibrator = Calibrator(model, TokenBlock(tokens, "t", 1, tokens.numel(), "x"), {"source": "test"}, 2, 0)
    plan = METHODS["cats"].plan(method("cats"), shape, found, ALL, calibrator)
    assert plan.thresholds is not None
    threshold = plan.thresholds["gate"][0]
    assert threshold == pytest.approx(float(hidden.abs().float().reshape(-1).quantile(neurons)), rel=5e-3)
    meter = SparsityMeter(shape, found.weights_per_channel)
    with apply(model, plan) as handle, handle.observed_by(meter):
        sparse = inputs(model, tokens, "model.layers.0.mlp.down_proj")
    expected = hidden * (hidden.abs() > threshold) * mlp.up_proj(gate)
    torch.testing.assert_close(sparse, expected)
    measured = meter.summary()
    assert measured["site_mean"]["h1"] == [0.0] * 5
    share = float((sparse == 0).double().mean()) * 2 * 48 * 80 / shape.layer_weights
    first = measured["site_mean"]["h4"][0] * 2 * 48 * 80 / shape.layer_weights
    assert first == pytest.approx(share)
    assert account(plan)["weight_sparsity"] == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("more", [{}, {"form": "simulated"}, {"granularity": "model"}])
def test_thresholds_drop_the_level_on_average_in_the_rotated_basis(more: dict[str, str], tokens: Tensor) -> None:
    model = build_model("llama")
    shape = ModelShape.of(model.config)
    with applied(model, tokens, method("larosa/paper", selector="threshold", **more), sparsity=0.5) as handle:
        meter = SparsityMeter(shape, shape.weights_per_channel)
        with handle.observed_by(meter):
            model(tokens)
        found = meter.summary()
    assert found["site_mean"]["h1"][0] == pytest.approx(0.5, abs=0.01)  # layer 0 sees what calibration saw
    assert found["site_std_over_tokens"]["h1"][0] > 0.01
    assert 0.35 < found["weight_sparsity_mean"] < 0.6


def test_magnitudes_that_are_no_numbers_are_refused(tokens: Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    model.model.layers[3].mlp.up_proj.weight.data[5] = float("inf")
    with pytest.raises(CalibrationError, match="layer 3, h4: the calibration activations hold NaN or infinity"):
        applied(model, tokens, method("magnitude", selector="threshold"))


@pytest.mark.parametrize("other", [{"form": "simulated"}, {"basis": "random"}, {"granularity": "sublayer"}])
def test_thresholds_of_another_basis_are_refused(other: dict[str, str], tokens: Tensor) -> None:
    model = build_model("llama")
    with applied(model, tokens, method("larosa/paper", selector="threshold")) as handle:
        plan = handle.plan
    moved = replace(plan, method=plan.method.model_copy(update=other))
    with pytest.raises(PlanError, match=r"calibrated in absorbed, pca, layer, .* drops entries in"):
        apply(model, moved)
    with pytest.raises(PlanError, match="unknown basis"):
        apply(model, replace(plan, calibrated_in=None))


def test_cats_says_how_far_it_goes(tokens: Tensor) -> None:
    shape = ModelShape.of(build_model("llama").config)
    with pytest.raises(ScheduleError, match=r"must stay below 0\.\d+"):
        METHODS["cats"].levels(method("cats"), shape, schedule("uniform"), 0.6, "tiny")


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_output_aware_is_exact_at_level_zero_and_its_columns_are_orthonormal(kind: str, tokens: Tensor) -> None:
    model = build_model(kind, tied=True, hidden_size=64, num_attention_heads=4)
    dense = parity.reference(model, tokens)
    with applied(model, tokens, method("larosa/output_aware", transform_dtype="model")) as handle:
        layer = model.model.layers[1]
        stacked = torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])
        gain = layer.post_attention_layernorm.weight
        assert not torch.allclose(gain, torch.ones_like(gain))  # the norm carries the transform's column lengths
        torch.testing.assert_close(stacked.T @ stacked, torch.eye(64, dtype=torch.float64), atol=1e-8, rtol=0)
        assert handle.adapters == []
        with handle.level_zero():
            error = (parity.logits(model, tokens) - dense.logits).norm() / dense.logits.norm()
        assert error < 1e-10
    assert torch.equal(parity.logits(model, tokens), dense.logits)


def test_output_aware_drops_what_its_definition_says(tokens: Tensor) -> None:
    """One layer by hand: z = T x, top-k, W T^-1; and the squared output error is the dropped energy."""
    model = build_model("llama", num_hidden_layers=1, hidden_size=64, num_attention_heads=4)
    layer = model.model.layers[0]
    h = model.model.embed_tokens(tokens)
    x = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)
    W = torch.cat([p.weight for p in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)])
    W = W * layer.input_layernorm.weight
    S = torch.einsum("btd,bte->de", x, x) / tokens.numel()
    values, vectors = torch.linalg.eigh(W.T @ W)
    root = vectors @ torch.diag(values.sqrt()) @ vectors.T
    U = torch.linalg.eigh(root @ S @ root).eigenvectors
    z = x @ root @ U
    keep = z.abs().topk(32, dim=-1).indices
    z_sparse = torch.zeros_like(z).scatter(-1, keep, z.gather(-1, keep))
    expected = z_sparse @ torch.linalg.inv(root @ U) @ W.T
    torch.testing.assert_close((x @ W.T - expected).norm(), (z - z_sparse).norm())
    with applied(model, tokens, method("larosa/output_aware", transform_dtype="model")):
        hidden: list[Tensor] = []
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            linear.register_forward_hook(lambda _m, _a, y: hidden.append(y))
        model(tokens)
    torch.testing.assert_close(torch.cat(hidden, -1), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("storage", "most", "share"), [("int8", 0.02, 0.5), ("int4", 0.3, 0.25)])
def test_transforms_are_stored_small_and_undone_as_stored(
    storage: str, most: float, share: float, tokens: Tensor
) -> None:
    model = build_model("llama", dtype=torch.float32, hidden_size=64, num_attention_heads=4)
    dense = parity.reference(model, tokens)
    with applied(model, tokens, method("larosa/output_aware", transform_dtype=storage)) as handle:
        found = parity.check(model, handle, dense)
        transform = handle.sites[0].transform
        assert transform is not None
        exact, _ = split_gain(handle.plan.transforms[0, 0])
        exact = torch.block_diag(*exact)
        stored = torch.block_diag(*transform.blocks(torch.float64))
        counted = account(handle.plan)["overhead"]
    assert found["relative_logits_error"] <= found["bound"]
    assert transform.qweight.dtype == torch.int8
    assert int(transform.qweight.abs().max()) == (127 if storage == "int8" else 7)
    assert 1e-4 < float((stored - exact).norm() / exact.norm()) < most
    assert counted["bytes"] == pytest.approx(2 * 5 * 64 * 64 * 2 * share, rel=0.15)


@pytest.mark.parametrize("name", ["magnitude", "wina", "wina/transform", "teal", "cats", "larosa/output_aware"])
def test_remove_restores_the_model(name: str, tokens: Tensor) -> None:
    model = build_model("mistral", dtype=torch.float32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    dense = parity.logits(model, tokens)
    handle = applied(model, tokens, method(name))
    assert not torch.equal(parity.logits(model, tokens), dense)
    handle.remove()
    assert torch.equal(parity.logits(model, tokens), dense)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("teal", {"importance": "column_norm"}, "teal has no setting importance, which belongs to larosa"),
        ("wina", {"basis": "weight_svd"}, "wina is plain"),
        (
            "cats",
            {"selector": "top_k"},
            "cats has no setting selector, which belongs to magnitude, wina, r_sparse, larosa",
        ),
        ("larosa/paper", {"basis": "output_aware"}, "go together"),
        ("larosa/paper", {"basis": "weight_svd"}, "needs method.form=absorbed and method.granularity=sublayer"),
    ],
)
def test_impossible_combinations_raise(name: str, more: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(name, **more)
