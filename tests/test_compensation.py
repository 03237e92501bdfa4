"""Bias compensation against a straightforward implementation with hooks, on tiny models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_config import parse
from test_methods import Watched, applied
from test_schedule import method, schedule
from torch import Tensor, nn
from transformers import PreTrainedModel

from conftest import build_model
from larosa.calibration.calibrator import Calibrator
from larosa.cli import allocate
from larosa.config.run import ConfigError, MethodConfig, TokenPolicyConfig
from larosa.data.tokens import TokenBlock
from larosa.decode.errors import DecodeError
from larosa.decode.from_model import weights_of
from larosa.evaluation import parity
from larosa.evaluation.accounting import account
from larosa.evaluation.error import probe
from larosa.experiment.results import _method_identity as method_identity
from larosa.methods.registry import METHODS
from larosa.models.architecture import SITES, ModelView
from larosa.models.sites import ModelShape
from larosa.sparsity.handle import Plan, PlanError, apply
from larosa.sparsity.level_override import LevelOverrides
from larosa.sparsity.schedule import make_levels


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path))


MEAN = {"bias_compensation": "mean"}
METHODS_WITH_IT = {
    "magnitude": method("magnitude", **MEAN),
    "magnitude, threshold": method("magnitude", selector="threshold", **MEAN),
    "teal": method("teal", **MEAN),
    "wina": method("wina", **MEAN),
    "wina/transform": method("wina/transform", **MEAN),
    "absorbed": method("larosa/paper", **MEAN),
    "absorbed, sublayer": method("larosa/paper", granularity="sublayer", **MEAN),
    "simulated": method("larosa/paper", form="simulated", **MEAN),
    "online": method("larosa/output_aware", importance="column_norm", **MEAN),
}


@contextmanager
def hooks_on(linears: list[nn.Linear], hook: object) -> Iterator[None]:
    hooks = [linear.register_forward_pre_hook(hook) for linear in linears]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for made in hooks:
            made.remove()


def projections(model: PreTrainedModel) -> list[nn.Linear]:
    return [linear for layer, site in ModelView(model).sites() for linear in layer.consumers(site)]


def mean_output(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Of the first layer's v, over all tokens."""
    seen: list[Tensor] = []
    hook = model.model.layers[0].self_attn.v_proj.register_forward_hook(lambda _m, _a, y: seen.append(y.mean((0, 1))))
    model(tokens)
    hook.remove()
    return seen[0]


def half(x: Tensor) -> Tensor:
    """Top-K of half of the channels by magnitude."""
    keep = x.abs().topk(x.shape[-1] // 2, dim=-1).indices
    return torch.zeros_like(x).scatter(-1, keep, x.gather(-1, keep))


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_constant_stands_for_what_is_dropped(kind: str, tokens: Tensor) -> None:
    """Hooks that know nothing of larosa: half of each input is dropped, then its mean effect is added."""
    model = build_model(kind)
    dropped: dict[nn.Module, Tensor] = {}

    def drop(linear: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        dropped[linear] = (args[0] - half(args[0])).mean((0, 1))
        return (half(args[0]),)

    with hooks_on(projections(model), drop):
        plain = parity.logits(model, tokens)
    mean = dict(dropped)  # the next pass has inputs of its own
    added = [
        linear.register_forward_hook(lambda _m, _a, y, b=linear.weight @ mean[linear]: y + b)
        for linear in projections(model)
    ]
    with hooks_on(projections(model), lambda _m, args: (half(args[0]),)):
        expected = parity.logits(model, tokens)
    for hook in added:
        hook.remove()
    with applied(model, tokens, METHODS_WITH_IT["magnitude"]):
        torch.testing.assert_close(parity.logits(model, tokens), expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(plain, expected, rtol=1e-2)


@pytest.mark.parametrize("name", METHODS_WITH_IT)
def test_outputs_are_right_in_the_mean_in_every_form(name: str, tokens: Tensor) -> None:
    """Of the first site, whose inputs nothing has changed; exact at level 0 and gone after remove()."""
    model = build_model("llama", num_hidden_layers=3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    dense, right = parity.logits(model, tokens), mean_output(model, tokens)
    with applied(model, tokens, METHODS_WITH_IT[name]) as handle:
        sparse, compensated = parity.logits(model, tokens), mean_output(model, tokens)
        with handle.level_zero():
            assert float((parity.logits(model, tokens) - dense).norm() / dense.norm()) < 1e-9
        plan = handle.plan
    torch.testing.assert_close(compensated, right, rtol=1e-5, atol=1e-6)
    none = plan.method.model_copy(update={"bias_compensation": "none"})
    with apply(model, replace(plan, method=none, dropped_mean=None)):
        assert not torch.allclose(parity.logits(model, tokens), sparse, rtol=1e-3)
        assert not torch.allclose(mean_output(model, tokens), right, rtol=1e-2)
    assert torch.equal(parity.logits(model, tokens), dense)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any(linear._forward_hooks for linear in projections(model))


def test_biases_of_writers_are_in_the_basis_of_the_residual_stream(tokens: Tensor) -> None:
    model = build_model("llama")
    dense = [layer.mlp.down_proj.weight.clone() for layer in model.model.layers]
    with applied(model, tokens, METHODS_WITH_IT["absorbed"]) as handle:
        means, rotation = handle.plan.dropped_mean, handle.plan.rotation
        assert means is not None
        assert rotation is not None
        for site in (site for site in handle.sites if site.site == "h4"):
            assert site.compensation is not None
            rotated_back = site.compensation.output() @ rotation.at(site.layer, "h1").T
            torch.testing.assert_close(rotated_back, dense[site.layer] @ means["h4"][site.layer].double())


def planned(model: PreTrainedModel, tokens: Tensor, chosen: MethodConfig, kind: str, sparsity: float = 0.5) -> Plan:
    shape, policy = ModelShape.of(model.config), TokenPolicyConfig(kind=kind, n=5, fraction=0.5)
    levels = make_levels(shape, schedule("uniform"), sparsity, "tiny", chosen.rounding)
    calibrator = Calibrator(model, TokenBlock(tokens, "t", 1, tokens.numel(), "x"), None, 2, 0)
    return METHODS[chosen.name].plan(chosen, shape, levels, policy, calibrator)


@pytest.mark.parametrize(("kind", "first"), [("skip_first_n", 5), ("last_fraction", 16)])
def test_dense_tokens_get_no_bias(kind: str, first: int, tokens: Tensor) -> None:
    model = build_model("llama")
    dense = parity.logits(model, tokens)
    plan = planned(model, tokens, METHODS_WITH_IT["magnitude"], kind)
    watched = Watched()
    with apply(model, plan) as handle:
        found = parity.logits(model, tokens)
        with handle.observed_by(watched):
            model(tokens)
    torch.testing.assert_close(found[:, :first], dense[:, :first])
    assert not torch.allclose(found[:, first:], dense[:, first:], rtol=1e-2)
    z, z_sparse = watched.found[0, "h1"]  # of sparse tokens only
    assert len(z) == len(tokens) * (32 - first)
    assert plan.dropped_mean is not None
    torch.testing.assert_close(plan.dropped_mean["h1"][0].double(), (z - z_sparse).mean(0), rtol=1e-5, atol=1e-7)


def test_generated_tokens_are_compensated_alone(tokens: Tensor) -> None:
    model = build_model("llama")
    dense = parity.logits(model, tokens)
    plan = planned(model, tokens, METHODS_WITH_IT["magnitude"], "decode_only")
    assert plan.dropped_mean is not None
    assert bool(plan.dropped_mean["h2"].abs().sum() > 0)
    with apply(model, plan):
        prompt = model(tokens[:, :-1], use_cache=True)
        torch.testing.assert_close(prompt.logits, dense[:, :-1])
        with_bias = model(tokens[:, -1:], past_key_values=prompt.past_key_values).logits
    none = plan.method.model_copy(update={"bias_compensation": "none"})
    with apply(model, replace(plan, method=none, dropped_mean=None)):
        prompt = model(tokens[:, :-1], use_cache=True)
        without = model(tokens[:, -1:], past_key_values=prompt.past_key_values).logits
    assert not torch.allclose(with_bias, without, rtol=1e-2)


def test_nothing_is_added_where_nothing_is_dropped(tokens: Tensor) -> None:
    model = build_model("llama")
    dense = parity.logits(model, tokens)
    for name in ("magnitude", "absorbed"):
        plan = planned(model, tokens, METHODS_WITH_IT[name], "all", 0.0)
        assert plan.dropped_mean is not None
        assert all(bool((means == 0).all()) for means in plan.dropped_mean.values())
        with apply(model, plan):
            torch.testing.assert_close(parity.logits(model, tokens), dense)


def test_output_errors_are_those_of_the_compensated_outputs(tokens: Tensor) -> None:
    model = build_model("llama")
    errors = []
    for setting in ("none", "mean"):
        with applied(model, tokens, method("magnitude", bias_compensation=setting)) as handle:
            errors.append(probe(model, handle, tokens)["site_error"]["h2"][0])
            site = next(site for site in handle.sites if site.site == "h2")
            lost: list[Tensor] = []
            if setting == "mean":
                down = site.consumers[0]
                hook = down.register_forward_hook(lambda _m, _a, y, kept=lost: kept.append(y))
                inputs = Watched()
                with handle.observed_by(inputs):
                    model(tokens)
                hook.remove()
                exact = inputs.found[0, "h2"][0] @ down.weight.T
                relative = (lost[0].reshape(exact.shape) - exact).norm(dim=-1) / exact.norm(dim=-1)
                assert errors[1] == pytest.approx(float(relative.mean()), rel=1e-5)
    assert errors[0] != errors[1]


def test_bytes_identity_and_label(tokens: Tensor) -> None:
    model = build_model("llama")
    with applied(model, tokens, METHODS_WITH_IT["magnitude"]) as handle:
        counted = account(handle.plan)["overhead"]
    outputs = 48 + 2 * 16 + 48 + 2 * 80 + 48
    assert counted == {"kind": "bias vectors", "products": 0, "bytes": 2 * 5 * outputs}
    for name in ("magnitude", "teal", "wina", "larosa/paper", "larosa/block_diagonal"):
        assert "bias_compensation" not in method_identity(method(name))
        assert method_identity(method(name, **MEAN))["bias_compensation"] == "mean"
        assert "bias compensation" in method(name, **MEAN).label
        assert "bias" not in method(name).label


def test_what_cannot_have_it_is_refused(tokens: Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    for name in ("cats", "r_sparse", "dense"):
        with pytest.raises(ValueError, match="bias_compensation, which belongs to magnitude, teal, wina, larosa"):
            method(name, **MEAN)
    with pytest.raises(ConfigError, match=r"no compensating biases; set method\.bias_compensation=none"):
        parse("method=magnitude", "method.bias_compensation=mean", "evaluation=speed", "model.dtype=bfloat16")
    with applied(model, tokens, METHODS_WITH_IT["magnitude"]) as handle:
        with pytest.raises(DecodeError, match="compensating biases"):
            weights_of(model, handle)
        with pytest.raises(PlanError, match=r"set method\.bias_compensation=none"):
            LevelOverrides(handle, None)
        plan = handle.plan
    with pytest.raises(PlanError, match="go together"):
        apply(model, replace(plan, dropped_mean=None))
    assert set(plan.dropped_mean or ()) == set(SITES)


def test_levels_are_found_without_it() -> None:
    """The same search, and so the same file, as without the setting."""
    words = [
        "model=tiny-llama",
        "calibration=text",
        "calibration.text.files=[]",
        "baseline=none",
        "texts=none",
        "schedule.path=x.json",
    ]
    configs = [parse(*words, "method=magnitude", f"method.bias_compensation={value}") for value in ("none", "mean")]
    plain, config = (allocate.uncompensated(config) for config in configs)
    assert config == plain
    assert allocate._identity(config) == allocate._identity(plain)
    assert configs[1].method.bias_compensation == "mean"
