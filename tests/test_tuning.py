"""Tuned bases and transforms: exact at level 0, better on the calibration tokens, the model untouched."""

from __future__ import annotations

import pytest
import torch
from test_config import parse
from test_methods import cache  # noqa: F401
from test_schedule import ALL, method, schedule
from torch import Tensor

from conftest import build_model
from larosa.calibration.calibrator import Calibrator
from larosa.calibration.statistics import ALL_CONSUMERS, weight_moments
from larosa.config.run import ConfigError, MethodConfig, TuningConfig
from larosa.data.tokens import TokenBlock
from larosa.errors import LarosaError
from larosa.evaluation import parity
from larosa.evaluation.accounting import account
from larosa.experiment.plan_runs import plan_runs
from larosa.methods.registry import METHODS
from larosa.models.sites import ModelShape
from larosa.rotation.online import OnlineTransform, output_aware, split_gain
from larosa.search.tuning import TunedTransforms
from larosa.sparsity.handle import Plan, SparsityHandle, apply
from larosa.sparsity.schedule import make_levels
from larosa.sparsity.site import SparseSite

WIDE = {"hidden_size": 64, "num_attention_heads": 4}


def tuning(**more: object) -> TuningConfig:
    found = method("larosa/tuned").tuning
    assert found is not None
    return found.model_copy(update={"steps": 25, "batch_size": 2, "learning_rate": 3e-3, **more})


def plan(model: torch.nn.Module, tokens: Tensor, chosen: MethodConfig) -> Plan:
    shape = ModelShape.of(model.config)
    levels = make_levels(shape, schedule("official"), 0.5, "tiny")
    calibrator = Calibrator(model, TokenBlock(tokens, "t", 1, tokens.numel(), "x"), {"source": "test"}, 2, 0)
    return METHODS[chosen.name].plan(chosen, shape, levels, ALL, calibrator)


class Inputs:
    """What one site shows before and after it is made sparse."""

    def __init__(self, site: SparseSite) -> None:
        self._site = site

    def observe(self, site: SparseSite, x: Tensor, y: Tensor, _z: Tensor, _z_sparse: Tensor) -> None:
        if site is self._site:
            self.x, self.y = x, y


def divergence(model: torch.nn.Module, tokens: Tensor, handle: SparsityHandle) -> float:
    """KL of the sparse model's next-token distribution from the dense one's, nats a token."""
    sparse = parity.logits(model, tokens).log_softmax(-1)
    with handle.level_zero():
        dense = parity.logits(model, tokens).log_softmax(-1)
    return float((dense.exp() * (dense - sparse)).sum(-1).mean())


@pytest.mark.parametrize(
    ("chosen", "start"),
    [
        (method("larosa/tuned", tuning=tuning()), method("larosa/output_aware")),
        (method("larosa/tuned", tuning=tuning(), block_size=16), method("larosa/output_aware", block_size=16)),
        (method("larosa/block_diagonal", tuning=tuning(), transform_dtype="int4"), None),
        (method("larosa/learned", tuning=tuning()), method("wina")),
        (method("larosa/learned", tuning=tuning(), granularity="model"), method("wina")),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_tuning_lowers_the_divergence_and_keeps_level_zero(
    kind: str, chosen: MethodConfig, start: MethodConfig | None, tokens: Tensor
) -> None:
    model = build_model(kind, tied=True, dtype=torch.float32, **WIDE)
    dense = parity.reference(model, tokens)
    start = start or chosen.model_copy(update={"tuning": None})
    with apply(model, plan(model, tokens, start)) as handle:
        before = divergence(model, tokens, handle)
    tuned = plan(model, tokens, chosen)
    assert torch.equal(parity.logits(model, tokens), dense.logits)  # tuning left the model as it was
    with apply(model, tuned) as handle:
        assert divergence(model, tokens, handle) < 0.97 * before
        found = parity.check(model, handle, dense)
    assert found["relative_logits_error"] <= found["bound"] < 0.1
    assert torch.equal(parity.logits(model, tokens), dense.logits)


def test_learned_bases_are_orthogonal_and_shared_as_asked(tokens: Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    found = plan(model, tokens, method("larosa/learned", tuning=tuning(steps=5), granularity="group", group_size=2))
    assert found.rotation is not None
    Q = found.rotation.matrices
    assert Q.shape == (3, 48, 48)
    assert float((Q @ Q.mT - torch.eye(48)).abs().max()) < 1e-12
    assert float((Q - torch.eye(48)).abs().max()) > 1e-3
    assert account(found)["overhead"]["products"] == 2


def test_the_output_error_is_what_the_second_objective_lowers(tokens: Tensor) -> None:
    """Against a direct computation of the relative squared errors of what reads h1 and h3, sparsity on throughout."""
    model = build_model("llama", dtype=torch.float32)

    def error(chosen: MethodConfig) -> float:
        total = 0.0
        with apply(model, plan(model, tokens, chosen)) as handle:
            for site in (s for s in handle.sites if s.site in ("h1", "h3")):
                seen = Inputs(site)
                with handle.observed_by(seen):
                    model(tokens)
                W = torch.cat([reader.weight for reader in site.consumers])
                total += float(((seen.x - seen.y) @ W.T).pow(2).sum() / (seen.x @ W.T).pow(2).sum())
        return total

    objective = tuning(objective="output_error", learning_rate=1e-2, steps=40)
    learned = method("larosa/learned", tuning=objective)
    assert error(learned) < 0.95 * error(method("wina"))


def test_blocks_are_the_transforms_of_their_own_channels(tokens: Tensor) -> None:
    model = build_model("llama", **WIDE)
    found = plan(model, tokens, method("larosa/output_aware", block_size=16, transform_dtype="model"))
    assert found.transforms is not None
    assert found.transforms.shape == (5, 2, 4, 16, 16)
    G = weight_moments(model, ALL_CONSUMERS)[2, 1]
    for i in range(4):
        T, own = found.transforms[2, 1, i], slice(16 * i, 16 * i + 16)
        torch.testing.assert_close(T.T @ T, G[own, own], rtol=1e-6, atol=1e-9)
    unit, gain = split_gain(found.transforms[2, 1])
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(4, 16, dtype=torch.float64))
    torch.testing.assert_close(gain, G.diagonal().sqrt())


@pytest.mark.parametrize("storage", ["int8", "int4"])
def test_steps_see_the_transform_as_it_will_run(storage: str, tokens: Tensor) -> None:
    model = build_model("llama", dtype=torch.float32, **WIDE)
    start = plan(model, tokens, method("larosa/output_aware")).transforms
    assert start is not None
    unit, gain = split_gain(start)
    tuned = TunedTransforms(unit, gain, storage, torch.device("cpu"))
    tuned.change.data.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    turn = tuned.refresh()[2, "h3"]
    final, final_gain = split_gain(tuned.result()[2, 1])
    deployed = OnlineTransform(final, storage, torch.float32)
    x = torch.randn(9, 64, generator=torch.Generator().manual_seed(1))
    expected = deployed(x * final_gain.float())
    torch.testing.assert_close(
        turn.rotate(x * gain[2, 1].float()), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )
    back = turn.unrotate(turn.rotate(x))
    torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-3)


def test_a_channel_without_weights_leaves_the_transform_invertible() -> None:
    generator = torch.Generator().manual_seed(0)
    S = torch.randn(64, 64, generator=generator, dtype=torch.float64)
    W = torch.randn(128, 64, generator=generator, dtype=torch.float64)
    W[:, 7] = 0
    unit, _gain = split_gain(output_aware(S @ S.T, W.T @ W, 32))
    assert float(torch.linalg.cond(unit).max()) < 1e7


@pytest.mark.parametrize(
    ("block", "storage", "expected"),
    [
        (None, "int8", 64 * 64 + 2 * 64),
        (16, "int8", 64 * 16 + 2 * 64),
        (64, "int4", 64 * 32 + 2 * 64),
        (16, "model", 64 * 16 * 2),
    ],
)
def test_bytes_of_blocks(block: int | None, storage: str, expected: int, tokens: Tensor) -> None:
    model = build_model("llama", **WIDE)
    chosen = method("larosa/output_aware", block_size=block, transform_dtype=storage)
    found = account(plan(model, tokens, chosen))
    assert found["overhead"]["bytes"] == 10 * expected
    assert found["read_fraction"] == pytest.approx(1 - found["weight_sparsity"] + found["overhead_fraction"])


def test_llama_proportions_of_the_papers_adapter(tokens: Tensor) -> None:
    found = account(plan(build_model("llama"), tokens, method("larosa/paper")))
    assert found["overhead_fraction_llama2_7b"] == pytest.approx(4 / 5 * 4096**2 / (4 * 4096**2 + 3 * 4096 * 11008))


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("larosa/paper", {"tuning": tuning()}, "method.tuning belongs"),
        ("larosa/paper", {"basis": "learned"}, "needs method.tuning"),
        ("larosa/learned", {"form": "simulated"}, "is absorbed"),
        ("larosa/paper", {"block_size": 64}, "method.block_size belongs"),
    ],
)
def test_impossible_combinations_raise(name: str, more: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(name, **more)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=larosa/block_diagonal", "method.block_size=100"], "must divide the model's width 576"),
        (["method=larosa/block_diagonal", "method.block_size=48"], "multiple of 64"),
    ],
)
def test_blocks_that_do_not_fit_are_refused_before_weights(overrides: list[str], message: str) -> None:
    with pytest.raises((ConfigError, LarosaError), match=message):
        plan_runs(parse(*overrides))
