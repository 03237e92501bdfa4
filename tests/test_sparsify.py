"""`larosa.sparsify` plans as `run.py` does, and says what is wrong with an argument."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from test_config import parse
from test_pipeline import write_text
from torch import Tensor

from conftest import CONF, build_model
from larosa import ArgumentError, LaRoSAConfig, models, sparsify
from larosa.api.settings import SparsityConfig, choices
from larosa.config.method import method_settings
from larosa.config.run import RunConfig
from larosa.experiment.plan_runs import plan_runs
from larosa.experiment.session import Session, open_session, read_documents
from larosa.methods.registry import METHODS
from larosa.models.sites import ModelShape
from larosa.sparsity.handle import Plan, apply
from larosa.sparsity.schedule import ScheduleError, byte_weighted
from larosa.sparsity.schedule_file import write_schedule

STEPS = {"method.tuning.steps": 2}
SEARCH = {"method.low_rank_ratio_grid": [0.0125, 0.025], "method.low_rank_ratio": 0.02}
CASES: list[dict[str, Any]] = [
    *({"method": name} for name in choices("method")),
    *({"schedule": name} for name in ("uniform", "constrained")),
    {"schedule": "paper", "model_name": "tiny-llama"},
    *({"token_policy": name, "method": "larosa/paper"} for name in choices("token_policy")),
    {"method": "larosa/paper", "token_policy": "skip_first_n", "settings": {"token_policy.n": 5}},
    {"method": "larosa/paper", "settings": {"method.selector": "threshold", "schedule.metric": "nominal"}},
    {"method": "larosa/paper", "settings": {"method.importance": "column_norm", "method.granularity": "sublayer"}},
    {"method": "larosa/paper", "settings": {"method.basis": "hadamard", "method.granularity": "model"}, "seed": 3},
    {"method": "larosa/official", "settings": {"method.basis": "random", "method.rotation_dtype": "model"}, "seed": 3},
    {"method": "larosa/output_aware", "settings": {"method.block_size": 16, "method.transform_dtype": "model"}},
    {"method": "magnitude", "settings": {"method.selector": "threshold"}},
    {"method": "r_sparse", "settings": SEARCH, "schedule": "uniform"},
]


@dataclass
class Runs:
    """One session of run.py's, for many methods."""

    words: list[str]
    session: Session


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAROSA_CACHE", str(folder / "cache"))
        calibration = write_text(folder / "a.txt", 0)
        words = [
            "model=tiny-llama", "calibration=text", f"calibration.text.files=[{calibration}]", "calibration.length=64",
            "calibration.sequences=8", "texts=none", "evaluation.zero_shot.tasks=[]", "tracking=off", "baseline=none",
            f"output={folder / 'runs'}", "evaluation.perplexity.length=64",
        ]  # fmt: skip
        config = parse(*words)
        yield Runs(words, open_session(config, read_documents(config)))


def tuned_shortly(case: dict[str, Any]) -> dict[str, Any]:
    """The case with two tuning steps, where it tunes."""
    name = case.get("method", "larosa")
    text = (CONF / "method" / f"{name}.yaml").read_text()
    return case | {"settings": case.get("settings", {}) | (STEPS if "tuning:\n" in text else {})}


def as_run_py(case: dict[str, Any], words: list[str]) -> RunConfig:
    """The same in run.py's words."""
    groups = {"method": "method", "schedule": "schedule", "token_policy": "token_policy"}
    named = [f"{group}={case[key]}" for group, key in groups.items() if key in case]
    changed = [f"{key}={json.dumps(value)}" for key, value in case["settings"].items()]
    evaluated = ["texts=none", "evaluation.zero_shot.tasks=[]"]
    return parse(*words, *named, *changed, *evaluated, "sparsity=0.3", f"seed={case.get('seed', 0)}")


def same(one: object, other: object) -> bool:
    """Equal, tensors bit for bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if hasattr(one, "matrices"):
        return same((one.matrices, one.index), (other.matrices, other.index))
    return bool(one == other)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(v) for v in case.values()).replace(" ", ""))
def test_the_plan_is_run_py_s(case: dict[str, Any], runs: Runs) -> None:
    case, session = tuned_shortly(case), runs.session
    config = as_run_py(case, runs.words)
    (cell,) = plan_runs(config).values()
    calibrator = copy.copy(session.calibrator)
    calibrator.seed = config.seed
    plan = METHODS[config.method.name].plan(
        cell.config.method, ModelShape.of(session.model.config), cell.levels, config.token_policy, calibrator
    )
    ids = session.calibration.ids
    with apply(session.model, plan):
        expected = session.model(ids[:2]).logits
    model = models.load_model(config.model, 0)
    with sparsify(model, ids, sparsity=0.3, batch_size=config.calibration.batch_size, **case) as handle:
        found = model(ids[:2]).logits
    for field in fields(Plan):
        assert same(getattr(handle.plan, field.name), getattr(plan, field.name)), field.name
    assert torch.equal(found, expected)
    assert torch.equal(model(ids[:2]).logits, session.model(ids[:2]).logits)


def test_every_preset_and_group_of_conf_is_compared() -> None:
    for group, key in {"method": "method", "schedule": "schedule", "token_policy": "token_policy"}.items():
        assert {case[key] for case in CASES if key in case} >= set(choices(group)) - {"official", "file"}
    assert SparsityConfig.read(sparsity=0.4).method == parse().method  # the defaults
    assert SparsityConfig.read(sparsity=0.4).schedule == parse().schedule
    assert SparsityConfig.read(sparsity=0.4).token_policy == parse().token_policy


def test_a_schedule_file_by_path_and_by_name(tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, path = build_model("llama", dtype=torch.float32), tmp_path / "schedules" / "mine" / "own.json"
    shape = ModelShape.of(model.config)
    write_schedule(path, shape, {site: [0.5, 1, 1, 1, 1.5] for site in shape.sites}, {})
    for name, given in {"mine": "own", None: path}.items():
        found = sparsify(
            model, tokens, sparsity=0.4, method="magnitude", schedule="file", settings={"schedule.path": given},
            model_name=name,
        )  # fmt: skip
        levels = found.plan.levels.level["h1"]
        assert levels[4] == pytest.approx(3 * levels[0])
        found.remove()
    for settings, message in (({}, r"schedule\.path must be given"), ({"schedule.path": "own"}, "say model_name")):
        with pytest.raises(ArgumentError, match=message):
            sparsify(model, tokens, sparsity=0.4, schedule="file", settings=settings)
    with pytest.raises(ScheduleError, match=r"nothing\.json cannot be read"):
        sparsify(model, tokens, sparsity=0.4, schedule="file", settings={"schedule.path": "nothing.json"})


def test_paper_s_rows_are_found_by_hub_id_or_name(tokens: Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    with pytest.raises(ArgumentError, match=r"model_name=\.\.\. \(llama2-7b"):
        sparsify(model, tokens, sparsity=0.4, method="magnitude", schedule="paper")
    with pytest.raises(ArgumentError, match=r"'llama-2-7b' is not in conf/model: .*llama2-7b"):
        sparsify(model, tokens, sparsity=0.4, method="magnitude", schedule="paper", model_name="llama-2-7b")
    with sparsify(model, tokens, sparsity=0.4, method="magnitude", schedule="paper", model_name="llama2-7b") as handle:
        named = handle.plan.levels
    model.config.name_or_path = "meta-llama/Llama-2-7b-hf"
    with sparsify(model, tokens, sparsity=0.4, method="magnitude", schedule="paper") as handle:
        assert handle.plan.levels == named
        assert "row llama2-7b" in named.source


def test_settings_can_be_objects_and_mappings(tokens: Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    asked = SparsityConfig.read(method="larosa/paper", sparsity=0.4)
    with sparsify(model, tokens, sparsity=0.4, method="larosa/paper") as handle:
        by_name = handle.plan
    whole = [asked.method, asked.method.model_dump(), method_settings(asked.method.model_dump())]
    for method in whole:
        with sparsify(
            model, tokens, sparsity=0.4, method=method, schedule=asked.schedule, token_policy=dict(asked.token_policy)
        ) as handle:
            assert same(handle.plan.rotation, by_name.rotation)
            assert handle.plan.levels == by_name.levels
    with sparsify(model, tokens, {"sparsity": 0.4}) as handle:
        assert same(handle.plan.rotation, by_name.rotation)
        assert handle.plan.levels.kept == by_name.levels.kept


@pytest.mark.parametrize("name", ["larosa/tuned", "larosa/learned", "larosa/output_aware", "larosa/official"])
def test_larosa_config_reaches_every_larosa(name: str, tokens: Tensor) -> None:
    """A LaRoSAConfig with a preset's settings is the preset."""
    settings = {"method.transform_dtype": "model", **(STEPS if "tuned" in name or "learned" in name else {})}
    asked = SparsityConfig.read(method=name, sparsity=0.4, settings=settings)
    own = asked.method.model_dump(exclude={"name", "preset"})
    model = build_model("qwen2", dtype=torch.float32)
    with sparsify(model, tokens, sparsity=0.4, method=asked.method, batch_size=2):
        expected = model(tokens).logits
    config = LaRoSAConfig(sparsity=0.4, batch_size=2, **own)
    with sparsify(model, tokens, config):
        assert torch.equal(model(tokens).logits, expected)


def test_cats_has_levels_of_its_own(tokens: Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    with sparsify(model, tokens, sparsity=0.3, method="cats", schedule="uniform") as handle:
        levels = handle.plan.levels
        assert levels.level["h1"] == (0.0,) * 5
        assert byte_weighted(levels.level, handle.plan.shape, levels.weights_per_channel) == pytest.approx(0.3)
    with pytest.raises(ScheduleError, match="method=cats skips up and down only"):
        sparsify(model, tokens, sparsity=0.9, method="cats")
    with pytest.raises(ScheduleError, match=r"leave it out of method\.low_rank_ratio_grid"):
        sparsify(model, tokens, sparsity=0.4, method="r_sparse", settings={"method.low_rank_ratio_grid": [0.9]})


def test_dense_needs_no_level(tokens: Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    dense = model(tokens).logits
    with sparsify(model, tokens, method="dense") as handle:
        assert torch.equal(model(tokens).logits, dense)
        assert handle.plan.levels.target == 0
    with pytest.raises(ArgumentError, match=r"sparsity=0\.4"):
        sparsify(model, tokens, method="magnitude")


@pytest.mark.parametrize("method", ["larosa/tuned", "larosa/learned", "wina/transform", "teal", "r_sparse"])
def test_the_caller_s_gradients_and_modes_do_not_matter(method: str, tokens: Tensor) -> None:
    settings = STEPS if method in ("larosa/tuned", "larosa/learned") else {}
    asked: dict[str, Any] = {"sparsity": 0.4, "method": method, "settings": settings}
    if method == "larosa/tuned":
        settings = asked["settings"] = STEPS | {"method.transform_dtype": "model"}
    frozen, learning = build_model("llama", dtype=torch.float32), build_model("llama", dtype=torch.float32)
    learning.requires_grad_(True)
    learning.lm_head.weight.requires_grad_(False)
    with sparsify(frozen, tokens, **asked):
        expected = frozen(tokens).logits
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            handle = sparsify(learning, tokens, **asked)
        torch.testing.assert_close(learning(tokens).logits, expected, rtol=0, atol=0)
        calibrated = [handle.plan.transforms, getattr(handle.plan.rotation, "matrices", None)]
        assert not any(tensor.requires_grad for tensor in calibrated if tensor is not None)
        handle.remove()
    assert {n for n, p in learning.named_parameters() if not p.requires_grad} == {"lm_head.weight"}
    assert all(p.grad is None for p in learning.parameters())


def test_calibration_is_kept_only_where_asked_and_by_the_weights(
    tokens: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path))
    model = build_model("llama", dtype=torch.float32)

    def sparse(cache: bool) -> Tensor:
        with sparsify(model, tokens, sparsity=0.4, method="larosa/paper", cache=cache):
            return model(tokens).logits

    expected = sparse(cache=False)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert torch.equal(sparse(cache=True), expected)
    kept = {path.name for path in tmp_path.rglob("*.safetensors")}
    assert torch.equal(sparse(cache=True), expected)
    assert kept == {path.name for path in tmp_path.rglob("*.safetensors")} != set()
    model.model.layers[0].self_attn.q_proj.weight[0, 0] += 1
    assert not torch.equal(sparse(cache=True), expected)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2 * len(kept)
