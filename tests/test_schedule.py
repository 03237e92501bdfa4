"""Levels: byte-weighted to within a channel a site, the paper's count, Table 11, refusals; accounting beside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from test_config import parse
from transformers import AutoConfig

from conftest import CONF, ROOT
from larosa.config.method import method_settings
from larosa.config.run import MethodConfig, ScheduleConfig, TokenPolicyConfig
from larosa.evaluation.accounting import account
from larosa.experiment.plan_runs import plan_runs
from larosa.models.architecture import SITES
from larosa.models.sites import ModelShape
from larosa.rotation.rotation import Rotation, build_rotation, rotation_index
from larosa.sparsity.handle import Plan
from larosa.sparsity.schedule import ScheduleError, byte_weighted, make_levels, table11_constraints


def shape_of(model: str) -> ModelShape:
    return ModelShape.of(AutoConfig.for_model(**yaml.safe_load((CONF / f"model/{model}.yaml").read_text())["shape"]))


def schedule(name: str, **more: object) -> ScheduleConfig:
    return ScheduleConfig(**{**yaml.safe_load((CONF / f"schedule/{name}.yaml").read_text()), **more})


def method(name: str, **more: object) -> MethodConfig:
    return method_settings({**yaml.safe_load((CONF / f"method/{name}.yaml").read_text()), **more})


ALL = TokenPolicyConfig(kind="all", n=0, fraction=1.0)


@pytest.mark.parametrize("model", ["llama2-7b", "llama3-8b", "mistral-7b", "qwen2.5-7b", "smollm2-135m"])
@pytest.mark.parametrize("name", ["uniform", "official", "paper"])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.4, 0.5])
def test_byte_weighted_level_is_met_to_within_one_channel_a_site(model: str, name: str, sparsity: float) -> None:
    shape = shape_of(model)
    levels = make_levels(shape, schedule(name), sparsity, model)
    skipped = sum((shape.sites[s].width - k) * shape.sites[s].out_features for s in SITES for k in levels.kept[s])
    total = shape.layers * shape.layer_weights
    one_channel = sum(shape.sites[s].out_features for s in SITES) * shape.layers
    assert abs(skipped - sparsity * total) <= one_channel
    for s in SITES:
        for level, kept in zip(levels.level[s], levels.kept[s], strict=True):
            assert abs(level * shape.sites[s].width - (shape.sites[s].width - kept)) <= 0.5 + 1e-9


def test_shapes_agree_with_the_bytes_of_the_known_models() -> None:
    assert shape_of("llama2-7b").layer_weights * 32 * 2 == pytest.approx(12.952e9, rel=1e-3)
    assert shape_of("qwen2.5-7b").layer_weights * 28 * 2 == pytest.approx(13.051e9, rel=1e-3)


def test_paper_count_reproduces_table_5() -> None:
    """Table 5: LLaMA2-7B, 45 / 65 / 40 / 57.5 % is the paper's 50 %, and fewer bytes than that."""
    shape = shape_of("llama2-7b")
    plan = Plan(
        method("larosa/paper"), shape, make_levels(shape, schedule("paper", metric="nominal"), 0.5, "llama2-7b"),
        ALL, build_rotation(method("larosa/paper", basis="identity"), None, 32, 1, 0),
    )  # fmt: skip
    counted = account(plan)
    assert [round(counted["planned_sparsity"][s][0], 3) for s in SITES] == [0.45, 0.65, 0.4, 0.575]
    assert counted["nominal_sparsity"] == pytest.approx(0.5, abs=2e-3)
    assert 0.46 < counted["weight_sparsity"] < 0.475


@pytest.mark.parametrize(
    ("model", "layers", "dense", "larosa"), [("llama2-7b", 32, 29.26, 31.46), ("llama3-8b", 32, 32.94, 35.14)]
)
def test_flops_reproduce_table_19(model: str, layers: int, dense: float, larosa: float) -> None:
    """Its TFLOPs are those of 2048 tokens, each attending to all of them; adapters come on top, zeros save nothing."""
    shape, chosen = shape_of(model), method("larosa/paper")
    rotation = Rotation(torch.eye(1, dtype=torch.float64)[None], rotation_index(layers, "layer", 1))
    levels = make_levels(shape, schedule("official"), 0.5, model)
    vocabulary = yaml.safe_load((CONF / f"model/{model}.yaml").read_text())["shape"]["vocab_size"]
    counted = account(Plan(chosen, shape, levels, ALL, rotation), vocabulary)["flops_per_token"]
    always = counted["projections"] + counted["head"] + 2048 * counted["attention_per_token_attended"]
    assert 2048 * always / 1e12 == pytest.approx(dense, rel=5e-4)
    # the paper counts an adapter for each of the layers, of which the last one needs none
    assert 2048 * (always + counted["overhead"] * layers / (layers - 1)) / 1e12 == pytest.approx(larosa, rel=5e-4)
    assert counted["projections_kept"] == pytest.approx(counted["projections"] / 2, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "more", "products"),
    [
        ("magnitude", {}, 0),
        ("larosa/output_aware", {}, 2 * 32 * 2 * 4096**2),
        ("larosa/block_diagonal", {"block_size": 64}, 2 * 32 * 2 * 4096 * 64),
        ("wina", {}, 32 * (3 * 4096 + 11008)),
    ],
)
def test_flops_of_extras(name: str, more: dict[str, object], products: int) -> None:
    shape = shape_of("llama2-7b")
    levels = make_levels(shape, schedule("official"), 0.5, "llama2-7b")
    counted = account(Plan(method(name, **more), shape, levels, ALL, None))["flops_per_token"]
    assert counted["overhead"] == products
    assert counted["head"] is None


def test_adapters_are_counted_apart() -> None:
    shape = shape_of("llama2-7b")
    levels = make_levels(shape, schedule("official"), 0.5, "llama2-7b")

    def shares(**more: object) -> float:
        chosen = method("larosa/paper", **more)
        if chosen.basis == "identity":
            rotation = build_rotation(chosen, None, 32, 1, 0)
        else:  # one matrix is enough to count products
            index = rotation_index(32, chosen.granularity, chosen.group_size)
            rotation = Rotation(torch.eye(1, dtype=torch.float64)[None], index)
        return float(account(Plan(chosen, shape, levels, ALL, rotation))["overhead_fraction"])

    one_a_layer = 32 * 4096**2 * 2 / 12.952e9
    assert shares() == pytest.approx(one_a_layer * 31 / 32, rel=1e-3)
    assert shares(granularity="sublayer") == pytest.approx(one_a_layer * 63 / 32, rel=1e-3)
    assert shares(granularity="group", group_size=4) == pytest.approx(one_a_layer * 7 / 32, rel=1e-3)
    assert shares(granularity="model") == 0.0
    assert shares(form="simulated") == pytest.approx(2 * one_a_layer, rel=1e-3)
    assert shares(basis="identity") == 0.0


def test_table_11_rows_and_the_rule_for_models_without_one() -> None:
    rows = schedule("paper").table
    for model in rows:
        shape = shape_of(model)
        ratio = shape.sites["h4"].width / shape.hidden_size
        a2, a4 = table11_constraints(rows[model].h1, rows[model].h3, ratio)
        assert rows[model].h2 == pytest.approx(a2, abs=0.01)
        assert rows[model].h4 == pytest.approx(a4, abs=0.011)
    levels = make_levels(shape_of("smollm2-135m"), schedule("paper", metric="nominal"), 0.5, "smollm2-135m")
    assert "no row for smollm2-135m" in levels.source
    assert levels.level["h2"][0] == pytest.approx(0.8)
    assert levels.level["h4"][0] == pytest.approx(0.5 * (2 + 1536 / 576 - 1.6) / (1536 / 576))


def test_a_level_of_one_or_more_is_refused_with_the_reach() -> None:
    with pytest.raises(ScheduleError, match=r"site h2, layer 0 would need level 1\.\d+.*must stay below 0\.6"):
        make_levels(shape_of("llama3-8b"), schedule("paper", metric="nominal"), 0.7, "llama3-8b")
    with pytest.raises(ScheduleError, match="must stay below"):
        make_levels(shape_of("smollm2-135m"), schedule("official"), 0.95, "smollm2-135m")


def test_a_bare_name_is_a_file_of_the_model() -> None:
    def path(given: str) -> str | None:
        return parse("model=tiny-llama", "schedule=file", f"schedule.path={given}").schedule.path

    assert path("mine") == "schedules/tiny-llama/mine.json"
    assert path("greedy-0.5") == "schedules/tiny-llama/greedy-0.5.json"
    assert path("mine.json") == "mine.json"
    assert path("here/mine") == "here/mine"


def test_schedule_file(tmp_path: Path) -> None:
    shape = shape_of("smollm2-135m")
    content = {
        "schema": 1,
        "layers": 30,
        "widths": {s: shape.sites[s].width for s in SITES},
        "levels": {s: [1.0 + 0.01 * i for i in range(30)] for s in SITES},
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    chosen = schedule("file", path=str(path))
    levels = make_levels(shape, chosen, 0.4, "smollm2-135m")
    assert levels.level["h4"][29] / levels.level["h4"][0] == pytest.approx(1.29)
    with pytest.raises(ScheduleError, match="another model"):
        make_levels(shape_of("tiny-llama"), chosen, 0.4, "tiny-llama")
    for bad, message in ((-0.1, "h2, layer 3 is -0.1"), (float("nan"), "layer 3 is nan"), (float("inf"), "is inf")):
        wrong = {**content, "levels": {**content["levels"], "h2": [1.0] * 3 + [bad] + [1.0] * 26}}
        path.write_text(json.dumps(wrong))
        with pytest.raises(ScheduleError, match=message):
            make_levels(shape, chosen, 0.4, "smollm2-135m")
    path.write_text(json.dumps({**content, "schema": 2}))
    with pytest.raises(ScheduleError, match="has schema 2, this version of larosa reads 1"):
        make_levels(shape, chosen, 0.4, "smollm2-135m")
    path.write_text(json.dumps(content)[:50])
    with pytest.raises(ScheduleError, match="is not a schedule"):
        make_levels(shape, chosen, 0.4, "smollm2-135m")
    with pytest.raises(ScheduleError, match="cannot be read"):
        make_levels(shape, schedule("file", path=str(tmp_path / "none.json")), 0.4, "smollm2-135m")


@pytest.mark.parametrize("path", sorted(ROOT.glob("schedules/*/*.json")), ids=lambda path: path.stem)
def test_committed_schedules_are_used_by_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    level = path.stem.rpartition("-")[2]
    more = ["method=magnitude", "schedule=file", f"schedule.path={path.stem}", f"sparsity={level}"]
    cell = list(plan_runs(parse(f"model={path.parent.name}", *more)).values())[-1]
    assert byte_weighted(
        cell.levels.level, shape_of(path.parent.name), cell.levels.weights_per_channel
    ) == pytest.approx(float(level))
    assert len(set(cell.levels.level["h1"])) > 2
