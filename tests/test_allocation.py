"""Levels per layer and site: curves against applied plans, TEAL's greedy rule, equal marginal error, the command."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_config import parse
from test_pipeline import overrides  # noqa: F401
from test_schedule import ALL, method
from transformers import PreTrainedModel

from conftest import build_model
from larosa.calibration.calibrator import Calibrator
from larosa.cli import allocate as command
from larosa.config.run import ConfigError, RunConfig
from larosa.data.overlap import OverlapError
from larosa.data.tokens import TokenBlock
from larosa.errors import ParityError
from larosa.evaluation import parity
from larosa.experiment.measure import measure
from larosa.experiment.pipeline import run
from larosa.experiment.plan_runs import PlannedRun, plan_runs
from larosa.experiment.prepare import prepare
from larosa.experiment.session import Session, open_session, read_documents
from larosa.methods.planning import thresholds_of
from larosa.models.architecture import SITES
from larosa.models.finite import EvaluationError
from larosa.models.sites import ModelShape
from larosa.rotation.rotation import build_rotation
from larosa.search.allocation import AllocationError, allocate
from larosa.search.curves import output_curves
from larosa.search.divergence import divergence_curves
from larosa.search.greedy import greedy_levels
from larosa.search.greedy_levels import greedy_allocation
from larosa.sparsity.handle import Plan, apply
from larosa.sparsity.schedule import Levels, ScheduleError
from larosa.sparsity.top_k import kept_channels

GRID = np.linspace(0, 0.9, 10)


def total(curves: np.ndarray, levels: np.ndarray) -> float:
    return sum(float(np.interp(levels[p], GRID, curves[p])) for p in np.ndindex(*levels.shape))


def test_target_is_met_and_no_exchange_helps() -> None:
    random = np.random.default_rng(0)
    curves = random.uniform(0.1, 3, (4, 3, 1)) * GRID ** random.uniform(1.2, 4, (4, 3, 1))
    weights = np.array([1.0, 3.0, 2.0])
    levels = allocate(curves, GRID, weights, 0.5)
    assert float((levels * weights).sum() / (4 * weights.sum())) == pytest.approx(0.5)
    best = total(curves, levels)
    assert best < total(curves, np.full((4, 3), 0.5))
    assert np.allclose(allocate(curves + random.uniform(0, 9, (4, 3, 1)), GRID, weights, 0.5), levels)
    for _ in range(300):
        a, b = (tuple(random.integers((4, 3))) for _ in range(2))
        moved = levels.copy()
        moved[a] += 0.03 / weights[a[1]]
        moved[b] -= 0.03 / weights[b[1]]
        if a != b and moved[b] >= 0 and moved[a] <= 0.9:
            assert total(curves, moved) >= best - 1e-12


def test_a_curve_with_a_bump_is_crossed_not_climbed() -> None:
    bump = np.array([0.0, 1.0, 1.1, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 1.3])
    line = 2.5 * GRID
    levels = allocate(np.stack([bump, line])[None], GRID, np.ones(2), 0.45)
    assert levels[0].tolist() == pytest.approx([0.9, 0.0])


def test_a_target_beyond_the_grid_is_refused() -> None:
    with pytest.raises(AllocationError, match="needs more"):
        allocate(np.zeros((1, 1, 10)), GRID, np.ones(1), 0.95)
    with pytest.raises(AllocationError, match="needs more"):
        greedy_levels(lambda _: 0.0, {"h1": 1}, 0.95, 0.1, 0.9)


def plan_at(
    levels: Mapping[tuple[int, str], float], model: PreTrainedModel, found: Calibrator, name: str, **more: object
) -> Plan:
    """A plan with these levels at (layer, site), 0 elsewhere."""
    chosen, shape = method(name, **more), ModelShape.of(model.config)
    level = {s: tuple(levels.get((i, s), 0.0) for i in range(shape.layers)) for s in SITES}
    kept = {s: tuple(kept_channels(p, shape.sites[s].width) for p in level[s]) for s in SITES}
    rotation = build_rotation(chosen, None, shape.layers, shape.hidden_size, 0) if name.startswith("larosa") else None
    plan = Plan(chosen, shape, Levels(0.5, level, kept, "given", shape.weights_per_channel), ALL, rotation)
    if name != "teal":
        return found.with_thresholds(plan)
    counted = found.histograms()
    thresholds = {s: tuple(counted.threshold(i, s, p) for i, p in enumerate(level[s])) for s in SITES}
    return replace(plan, thresholds=thresholds, calibrated_in=plan.method.coordinates)


@pytest.fixture
def calibrator(tokens: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calibrator:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path))
    model = build_model("qwen2", num_hidden_layers=3)
    return Calibrator(model, TokenBlock(tokens, "given", 1, tokens.numel(), "x"), {"source": "test"}, 2, 0)


def layer_errors(plan: Plan, model: PreTrainedModel, layer: int, ids: torch.Tensor) -> torch.Tensor:
    """Squared relative error a token of one layer's output beside what it would be without dropping."""
    seen = []
    with apply(model, plan) as handle:

        def hook(module: torch.nn.Module, args: Any, kwargs: Any, output: torch.Tensor) -> None:
            with handle.level_zero():
                dense = module.forward(*args, **kwargs)
            seen.append((output - dense).pow(2).sum(-1) / dense.pow(2).sum(-1))

        added = model.model.layers[layer].register_forward_hook(hook, with_kwargs=True)
        model(ids, use_cache=False)  # the layer runs twice
        added.remove()
    return torch.cat(seen)


FORMS: dict[str, tuple[str, dict[str, object]]] = {
    "magnitude": ("magnitude", {}),
    "teal": ("teal", {}),
    "wina": ("wina", {}),
    "absorbed": ("larosa/paper", {"basis": "random", "granularity": "sublayer", "ties": "keep"}),
    "simulated, threshold": ("larosa/paper", {"basis": "random", "form": "simulated", "selector": "threshold"}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("other_sites", ["dense", "sparse"])
def test_curves_are_what_applied_plans_measure(form: str, other_sites: str, calibrator: Calibrator) -> None:
    model, ids = calibrator.model, calibrator.tokens.ids[:2]
    name, more = FORMS[form]
    base = {(i, s): 0.3 for i in range(3) for s in SITES} if other_sites == "sparse" else {}
    plan, grid = plan_at(base, model, calibrator, name, **more), (0.0, 0.4, 0.8)
    thresholds = thresholds_of(plan, calibrator)
    with apply(model, plan) as handle:
        kl = divergence_curves(model, handle, ids, grid, thresholds, other_sites)
        output = output_curves(model, handle, ids, grid, thresholds, other_sites)
    dense = model(ids).logits.log_softmax(-1)
    for layer, site, i in ((0, "h3", 1), (1, "h2", 2), (2, "h4", 1), (2, "h1", 0)):
        single = plan_at({**base, (layer, site): grid[i]}, model, calibrator, name, **more)
        with apply(model, single):
            sparse = model(ids).logits.log_softmax(-1)
        expected = (dense.exp() * (dense - sparse)).sum(-1).mean()
        assert kl[layer, SITES.index(site), i] == pytest.approx(float(expected), rel=1e-9, abs=1e-12)
        error = layer_errors(single, model, layer, ids).mean()
        assert output[layer, SITES.index(site), i] == pytest.approx(float(error), rel=1e-5, abs=1e-12)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_one_pass_gives_the_limits_of_all_levels(calibrator: Calibrator, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_at({}, calibrator.model, calibrator, "magnitude", selector="threshold")
    monkeypatch.setattr("larosa.calibration.calibrator.count_magnitudes", lambda *_: pytest.fail("counted again"))
    thresholds = thresholds_of(plan, calibrator)
    assert thresholds is not None
    assert thresholds(0, "h1", 0.2) < thresholds(0, "h1", 0.5) < thresholds(0, "h1", 0.9)


@pytest.mark.parametrize("form", ["magnitude", "teal"])
def test_greedy_is_teals_algorithm(form: str, calibrator: Calibrator) -> None:
    """Against a reference that plans and applies every trial anew, in whole steps and one trimmed."""
    model, ids = calibrator.model, calibrator.tokens.ids[:2]
    name, more = FORMS[form]
    plan = plan_at({}, model, calibrator, name, **more)
    thresholds = thresholds_of(plan, calibrator)
    with apply(model, plan) as handle:
        found = greedy_allocation(model, handle, ids, thresholds, 0.5, step=0.8, highest=0.9)
    shape = plan.shape
    for layer in range(shape.layers):
        levels, spent = dict.fromkeys(SITES, 0.0), 0.0
        while spent < 0.5 * shape.layer_weights:
            cost = min(0.8 * shape.hidden_size**2, 0.5 * shape.layer_weights - spent)
            trials = {}
            for site in SITES:
                level = min(0.9, levels[site] + cost / shape.sites[site].weights)
                trial = {(layer, s): level if s == site else levels[s] for s in SITES}
                error = layer_errors(plan_at(trial, model, calibrator, name, **more), model, layer, ids).mean()
                if levels[site] < 0.9:
                    trials[float(error)] = (site, level)
            site, level = trials[min(trials)]
            spent += (level - levels[site]) * shape.sites[site].weights
            levels[site] = level
        assert found[layer] == pytest.approx([levels[site] for site in SITES])
        weighted = sum(found[layer][i] * shape.sites[s].weights for i, s in enumerate(SITES)) / shape.layer_weights
        assert weighted == pytest.approx(0.5, abs=1e-9)
    assert len(np.unique(found.round(6), axis=0)) > 1


def test_greedy_stops_a_site_at_the_highest_level() -> None:
    levels = greedy_levels(lambda levels: levels["b"], {"a": 1, "b": 3}, 0.6, 0.3, 0.9)
    assert levels == pytest.approx({"a": 0.9, "b": 0.5})


SEARCHES = [
    ("magnitude", "top_k", "algorithm=marginal"),
    ("teal", None, "algorithm=greedy"),
    ("wina/transform", None, "error=kl"),
    ("larosa/official", "threshold", "other_sites=sparse"),
    ("larosa/output_aware", "threshold", "error=kl"),
]


@pytest.mark.parametrize(("name", "selector", "search"), SEARCHES)
def test_the_command_writes_a_schedule_that_runs_use(
    name: str, selector: str | None, search: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    more = [
        f"method={name}",
        *([f"method.selector={selector}"] if selector else []),
        "sparsity=0.5",
        "baseline=none",
        "schedule.path=mine",
    ]
    config = parse(*overrides, *more, f"allocation.{search}", "allocation.grid=[0,0.3,0.6,0.9]", "allocation.step=0.5")
    path = command.run(config)
    assert path == Path("schedules/tiny-llama/mine.json")
    made_by = json.loads(path.read_text())["made_by"]
    assert made_by["model"]["name"] == "tiny-llama"
    assert made_by["method"] == config.method.label
    assert ("curves" in made_by) == (search != "algorithm=greedy")
    chosen = parse(*overrides, *more, "schedule=file")
    levels = list(plan_runs(chosen).values())[-1].levels
    assert len({round(level, 6) for site in SITES for level in levels.level[site]}) > 2
    if (name, search) == ("teal", "algorithm=greedy"):
        record = list(run(chosen).values())[-1]
        assert record["metrics"]["accounting"]["weight_sparsity"] == pytest.approx(0.5, abs=0.01)
        assert "mine.json" in record["metrics"]["accounting"]["coefficients"]


def test_curves_with_dense_others_serve_every_target(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    more = ["method=magnitude", "baseline=none", "allocation.grid=[0,0.3,0.6,0.9]", f"schedule.path={tmp_path}/a.json"]
    measured: list[str] = []
    real = command.output_curves

    def count(*arguments: Any) -> Any:
        measured.append(arguments[-1])
        return real(*arguments)

    monkeypatch.setattr(command, "output_curves", count)
    levels = []
    for target in ("sparsity=0.3", "sparsity=0.5"):
        levels.append(json.loads(command.run(parse(*overrides, *more, target)).read_text())["levels"])
    assert measured == ["dense"]
    assert levels[0] != levels[1]
    command.run(parse(*overrides, *more, "allocation.grid=[0,0.4,0.8]"))
    command.run(parse(*overrides, *more, "allocation.other_sites=sparse"))
    command.run(parse(*overrides, *more, "allocation.other_sites=sparse", "sparsity=0.5"))
    assert measured == ["dense", "dense", "sparse", "sparse"]


def test_the_same_search_is_made_once_and_waited_for(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    more = ["method=magnitude", "baseline=none", f"schedule.path={tmp_path / 'mine.json'}"]
    searches: list[float] = []
    real = command.search

    def slow(config: RunConfig, session: Session) -> Path:
        searches.append(config.sparsity)
        time.sleep(0.5)
        return real(config, session)

    monkeypatch.setattr(command, "search", slow)
    with ThreadPoolExecutor(2) as two:
        assert len({*two.map(command.run, [parse(*overrides, *more)] * 2)}) == 1
    assert searches == [0.4]
    content = (tmp_path / "mine.json").read_text()
    command.run(parse(*overrides, *more, "tracking=offline"))  # nothing that shapes the levels
    assert searches == [0.4]
    assert (tmp_path / "mine.json").read_text() == content
    command.run(parse(*overrides, *more, "force=true"))
    command.run(parse(*overrides, *more, "sparsity=0.5"))
    command.run(parse(*overrides, *more, "sparsity=0.5", "calibration.sequences=4"))
    command.run(parse(*overrides, *more, "sparsity=0.5", "calibration.sequences=4", "allocation.grid=[0,0.5,0.9]"))
    assert searches == [0.4, 0.4, 0.5, 0.5, 0.5]
    (tmp_path / "mine.json").write_text(content[:-40])
    command.run(parse(*overrides, *more))
    assert searches[5:] == [0.4]
    assert (tmp_path / "mine.json").read_text() == content


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["schedule.path=null"], "schedule.path=NAME"),
        (["schedule=file"], "written here, not read"),
        (["sparsity=0"], "nothing to allocate"),
        (["sparsity=0.95"], "needs more"),
        (["method=cats"], "not for cats"),
        (["allocation.algorithm=greedy", "allocation.error=kl"], "set allocation.error=output"),
        (["allocation.grid=[0.1,0.5]"], "must rise from 0"),
        (["allocation.grid=[0,0.95]"], "less than or equal to 0.9"),
    ],
)
def test_what_cannot_be_allocated_is_refused(more: list[str], message: str, overrides: list[str]) -> None:  # noqa: F811
    with pytest.raises((ConfigError, AllocationError), match=message):
        command.run(parse(*overrides, "schedule.path=mine", *more))


def test_a_schedule_found_on_an_evaluation_text_or_another_model_is_doubted(
    overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture  # noqa: F811
) -> None:  # fmt: skip
    path, more = (
        tmp_path / "mine.json",
        ["method=magnitude", "baseline=none", f"schedule.path={tmp_path / 'mine.json'}"],
    )
    swapped = [
        f"calibration.text.files=[{tmp_path / 'b.txt'}]",
        "texts=text",
        f"texts.text.files=[{tmp_path / 'a.txt'}]",
    ]
    command.run(parse(*overrides, *more, *swapped))
    content = json.loads(path.read_text())
    content["made_by"]["model"]["name"] = "larger-llama"
    path.write_text(json.dumps(content))
    with pytest.raises(ScheduleError, match="checksum does not match"):
        plan_runs(parse(*overrides, *more, "schedule=file"))
    del content["checksum"]
    path.write_text(json.dumps(content))
    config = parse(*overrides, *more, "schedule=file")
    session = open_session(config, read_documents(config))
    measure(list(plan_runs(config).values())[-1], session)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2
    assert "was made for larger-llama, not for tiny-llama" in warnings[0]
    assert "found on text" in warnings[1]


def test_a_search_runs_the_checks_of_a_run(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    chosen = [*overrides, "method=larosa/paper", "baseline=none", f"schedule.path={tmp_path / 'mine.json'}"]
    marked = tmp_path / "marked.txt"
    marked.write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.txt").read_bytes())
    with pytest.raises(OverlapError, match="not held out"):
        command.run(parse(*chosen, f"texts.text.files=[{marked}]"))
    monkeypatch.setattr(parity, "bound", lambda *_: 0.0)
    with pytest.raises(ParityError, match="at level 0"):
        command.run(parse(*chosen))
    assert not (tmp_path / "mine.json").exists()


@pytest.mark.parametrize("search", ["error=output", "error=kl", "algorithm=greedy"])
def test_levels_are_not_found_among_nan(
    search: str, overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    chosen = [*overrides, "method=magnitude", "baseline=none", f"schedule.path={tmp_path / 'mine.json'}"]

    def broken(planned: PlannedRun, session: Session, **more: bool) -> Any:
        found = prepare(planned, session, **more)
        session.model.model.layers[1].mlp.up_proj.weight.data[3] = float("inf")  # behind the check at level 0
        return found

    monkeypatch.setattr(command, "prepare", broken)
    with pytest.raises(EvaluationError, match=r"is (nan|inf)"):
        command.run(parse(*chosen, f"allocation.{search}", "allocation.grid=[0,0.6]"))
    assert not (tmp_path / "mine.json").exists()
