"""Column norms as importance, with Top-K and with thresholds, against few-line references on tiny models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_config import parse
from test_methods import applied
from test_schedule import method
from torch import Tensor, nn
from transformers import PreTrainedModel

from conftest import build_model
from larosa.evaluation import parity
from larosa.evaluation.accounting import account
from larosa.evaluation.sparsity import SparsityMeter
from larosa.experiment.results import _method_identity as method_identity
from larosa.models.architecture import ModelView
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
