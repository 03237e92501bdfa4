"""Column norms as importance, with Top-K and with thresholds, against few-line references on tiny models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_config import parse
from test_methods import applied, inputs
from test_schedule import method
from torch import Tensor, nn
from transformers import PreTrainedModel

from conftest import build_model
from larosa.calibration.statistics import ALL_CONSUMERS, weight_moments
from larosa.evaluation import parity
from larosa.evaluation.accounting import account
from larosa.evaluation.sparsity import SparsityMeter
from larosa.experiment.results import _method_identity as method_identity
from larosa.models.architecture import ModelView
from larosa.rotation.rotation import Rotation
from larosa.search.tuning import TunedBases
from larosa.sparsity.handle import PlanError, apply


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path))


THRESHOLDS = {
    "own basis": method("wina", selector="threshold"),
    "absorbed": method("larosa/paper", selector="threshold", importance="column_norm"),
    "simulated": method("larosa/paper", form="simulated", selector="threshold", importance="column_norm"),
    "online": method("larosa/output_aware", selector="threshold", importance="column_norm"),
}


def norms_of(linears: list[nn.Linear]) -> Tensor:
    return torch.cat([linear.weight for linear in linears]).norm(dim=0)


def hooked(model: PreTrainedModel, tokens: Tensor, thresholds: dict[str, tuple[float, ...]]) -> Tensor:
    """Logits where `|x_i| * norm_i <= t` is dropped in front of every projection."""
    hooks = []
    for layer, site in ModelView(model).sites():
        linears, t = layer.consumers(site), thresholds[site][layer.index]
        norms = norms_of(linears)
        for linear in linears:
            hooks.append(linear.register_forward_pre_hook(lambda _m, a, n=norms, t=t: (a[0] * (a[0].abs() * n > t),)))
    try:
        return parity.logits(model, tokens)
    finally:
        for hook in hooks:
            hook.remove()


def test_thresholds_on_column_norms_are_those_of_a_reference(tokens: Tensor) -> None:
    """WAS in the model's own basis, with L2 norms: quantiles of |x_i| * norm_i, then one comparison per entry."""
    model = build_model("llama")
    seen: dict[tuple[int, str], Tensor] = {}
    hooks = [
        layer.consumers(site)[0].register_forward_pre_hook(
            lambda _m, args, at=layer, site=site: seen.update(
                {(at.index, site): args[0] * norms_of(at.consumers(site))}
            )
        )
        for layer, site in ModelView(model).sites()
    ]
    model(tokens)
    for hook in hooks:
        hook.remove()
    with applied(model, tokens, THRESHOLDS["own basis"]) as handle:
        sparse, found = parity.logits(model, tokens), handle.plan.thresholds
        levels = handle.plan.levels.level
    assert found is not None
    for (layer, site), ranked in seen.items():
        expected = float(ranked.abs().reshape(-1).quantile(levels[site][layer]))
        assert found[site][layer] == pytest.approx(expected, rel=5e-3)
    torch.testing.assert_close(sparse, hooked(model, tokens, found))
    with applied(model, tokens, method("magnitude", selector="threshold")) as handle:
        assert not torch.allclose(parity.logits(model, tokens), sparse)  # the norms matter on this model


@pytest.mark.parametrize("name", THRESHOLDS)
def test_achieved_sparsity_is_the_target_in_every_form(name: str, tokens: Tensor) -> None:
    """On the calibration tokens, whose inputs at later layers have changed by what earlier sites dropped."""
    model = build_model("llama", num_hidden_layers=3)
    dense = parity.logits(model, tokens)
    with applied(model, tokens, THRESHOLDS[name]) as handle:
        with handle.level_zero():
            assert float((parity.logits(model, tokens) - dense).norm() / dense.norm()) < 1e-9
        meter = SparsityMeter(handle.plan.shape, handle.plan.levels.weights_per_channel)
        with handle.observed_by(meter):
            model(tokens)
        assert meter.summary()["weight_sparsity_mean"] == pytest.approx(0.5, abs=0.03)
        assert meter.summary()["site_mean"]["h1"][0] == pytest.approx(0.5, abs=0.005)
        assert "column norms" in account(handle.plan)["overhead"]["kind"]
    assert torch.equal(parity.logits(model, tokens), dense)


def test_thresholds_of_another_importance_are_refused(tokens: Tensor) -> None:
    model = build_model("llama")
    with applied(model, tokens, THRESHOLDS["absorbed"]) as handle:
        plan = handle.plan
    with pytest.raises(
        PlanError, match="times column norms, the method drops entries in absorbed, pca, layer: calibrate"
    ):
        apply(model, replace(plan, method=method("larosa/paper", selector="threshold")))


def test_identities_of_older_records_stand() -> None:
    """Those of wina have no selector."""
    settings = ("name", "form", "basis", "ties", "rounding")
    for name in ("wina", "wina/transform"):
        assert set(method_identity(method(name))) == set(settings)
    assert method_identity(THRESHOLDS["own basis"])["selector"] == "threshold"


def test_labels_tell_thresholds() -> None:
    assert parse("method=wina", "method.selector=threshold").method.label == "wina (threshold)"
    assert parse("method=magnitude", "method.selector=threshold").method.label == "magnitude (threshold)"
    assert [parse(f"method={name}").method.label for name in ("wina", "teal", "cats", "magnitude")] == [
        "wina", "teal", "cats", "magnitude",
    ]  # fmt: skip


@pytest.mark.parametrize("selector", ["top_k", "threshold"])
def test_exponents_0_and_1_are_magnitude_and_column_norms_to_the_bit(selector: str, tokens: Tensor) -> None:
    model = build_model("llama", num_hidden_layers=3)

    def logits(name: str, **more: object) -> Tensor:
        with applied(model, tokens, method(name, selector=selector, **more)):
            return parity.logits(model, tokens)

    none, norms = {"importance": "magnitude"}, {"importance": "column_norm"}
    for name in ("larosa/paper", "larosa/output_aware"):
        magnitude, whole = logits(name, **none), logits(name, **norms)
        assert torch.equal(logits(name, **norms, importance_exponent=0.0), magnitude)
        half = logits(name, **norms, importance_exponent=0.5)
        assert not any(torch.allclose(half, other) for other in (magnitude, whole))
    assert torch.equal(logits("wina", importance_exponent=0.0), logits("magnitude"))
    assert torch.equal(logits("wina", importance_exponent=1.0), logits("wina"))


def test_an_exponent_ranks_as_a_reference_does(tokens: Tensor) -> None:
    model = build_model("llama")
    layer = ModelView(model).layers[0]
    with applied(model, tokens, method("wina", importance_exponent=0.3)):
        norms = norms_of(layer.consumers("h1"))
        seen = inputs(model, tokens, "model.layers.0.self_attn.q_proj")
    dense = inputs(model, tokens, "model.layers.0.self_attn.q_proj")
    keep = (dense.abs() * norms**0.3).topk(24, dim=-1).indices
    torch.testing.assert_close(seen, torch.zeros_like(dense).scatter(-1, keep, dense.gather(-1, keep)))


def test_an_exponent_costs_what_column_norms_cost(tokens: Tensor) -> None:
    model = build_model("llama")
    overheads = []
    for exponent in (0.0, 0.5, 1.0):
        with applied(model, tokens, method("wina", importance_exponent=exponent)) as handle:
            overheads.append(account(handle.plan)["overhead"]["bytes"])
    assert overheads == [0, 2 * 5 * (3 * 48 + 80), 2 * 5 * (3 * 48 + 80)]


def test_identities_without_an_exponent_stand() -> None:
    for name in ("wina", "larosa/paper", "larosa/output_aware", "larosa/learned"):
        assert "importance_exponent" not in method_identity(method(name))
    assert method_identity(method("wina", importance_exponent=0.5))["importance_exponent"] == 0.5
    with pytest.raises(ValueError, match=r"belongs to method\.importance=column_norm"):
        method("larosa/paper", importance_exponent=0.5)


def test_labels_tell_exponents() -> None:
    assert method("wina", importance_exponent=0.5).label == "wina (column norms ^ 0.5)"
    assert method("wina", importance_exponent=0.0).label == "wina (magnitude)"
    assert method("larosa/learned", importance_exponent=0.5).label.endswith("per layer, column norms ^ 0.5)")


def test_learned_bases_are_tuned_with_their_exponent(tokens: Tensor) -> None:
    """The importance of a step is the norm of each column of W Q to the power p."""
    model = build_model("llama", dtype=torch.float32)
    grams = weight_moments(model, ALL_CONSUMERS)
    start = Rotation(torch.eye(48, dtype=torch.float64)[None], [(0, 0)] * 5)
    rotations = TunedBases(start, grams, torch.device("cpu"), 0.5).refresh()
    found, expected = rotations[2, "h3"].importance, grams[2, 1].diagonal().pow(0.25).float()
    assert found is not None
    torch.testing.assert_close(found, expected)
