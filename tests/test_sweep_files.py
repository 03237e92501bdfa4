"""Every file of sweeps/ expands, and every run of its commands plans, for the paper's models and for smollm2-135m."""

from __future__ import annotations

import copy
import shlex
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from made_records import made, write
from omegaconf import OmegaConf

from conftest import CONF, ROOT
from larosa.cli.command import read_settings
from larosa.cli.diagnose import _check
from larosa.cli.sweep import expand
from larosa.config.run import RunConfig
from larosa.evaluation.tasks.scores import ZeroShotError
from larosa.experiment.plan_runs import plan_runs
from larosa.sparsity.schedule import ScheduleError
from larosa_analysis import build, paper
from larosa_analysis.figures import every as every_figure
from larosa_analysis.records import store
from larosa_analysis.tables import every as every_table
from larosa_analysis.tables import flops
from larosa_analysis.tables.commands import command

SWEEPS = ROOT / "sweeps"
README = (SWEEPS / "README.md").read_text()
LISTS = {"evidence", "methods"}  # of larosa.cli.compare
NAMES = sorted(path.stem for path in SWEEPS.glob("*.yaml") if path.stem not in LISTS)
TABLES = {f"table{i:02d}" for i in range(1, 20) if not 12 <= i <= 18}  # Tables 12 to 18 are runs of table01
FIGURES = {"figure1", "figure3", "figure4", "figure5"}
GRIDS = ("algorithm1", "table10", "table11")  # of coefficients, some of which ask a site for more than there is
GROUPS = ("model", "row", "quantization", "calibrated_on", "schedule", "texts", "conditions", "evaluation")

Tree = dict[str, Any]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # plans do not ask whether it answers
    monkeypatch.setattr("larosa.experiment.plan_runs.check_installed", lambda _: None)  # of the extra `quantization`
    # Sweeps of speed are for a GPU; whether this machine has one is not what these tests ask.
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr("larosa.experiment.plan_runs.models.resolve_device", lambda name: torch.device("cuda:0"))


@cache
def composed(name: str, words: tuple[str, ...]) -> tuple[Tree, Tree]:
    """A run's settings and the sweep's parameters."""
    with initialize_config_dir(str(SWEEPS), version_base="1.3"):
        found = compose(name, [f"hydra.searchpath=[file://{CONF}]", *words], return_hydra_config=True)
    params: Any = OmegaConf.to_container(found.hydra.sweeper.params)
    own = OmegaConf.masked_copy(found, [str(key) for key in found if key != "hydra"])
    settings: Any = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    return settings, params


def commands(name: str) -> list[tuple[str, ...]]:
    """The overrides of the commands in a sweep's header."""
    start = f"#   python run.py --config-dir sweeps --config-name {name} -m"
    lines = [line for line in (SWEEPS / f"{name}.yaml").read_text().splitlines() if line.startswith(start)]
    words = [shlex.split(line.removeprefix(start)) for line in lines]
    return [tuple(word for word in own if not word.startswith("model.path=")) for own in words]  # the reader's folder


def runs_of(name: str, given: tuple[str, ...]) -> list[dict[str, Any]]:
    """Every run's values by key."""
    conditions = tuple(word for word in given if word.startswith("conditions="))
    parser = OverridesParser.create()
    runs = expand(composed(name, conditions)[1], given)
    return [{one.key_or_group: one.value() for one in parser.parse_overrides(run)} for run in runs]


def settings(name: str, run: dict[str, Any], first: dict[str, Any]) -> RunConfig:
    """Those of one run as Hydra composes them. Choices of different groups change different sections, so each is
    composed beside the first run's choices of the other groups."""

    def of(choices: dict[str, Any]) -> Tree:
        words = [f"{key}={str(value).replace(' ', '')}" for key, value in choices.items() if key in GROUPS]
        return composed(name, tuple(words))[0]

    base = of(first)
    found = copy.deepcopy(base)
    for key in run.keys() & set(GROUPS):
        other = of(first | {key: run[key]})
        found |= {section: copy.deepcopy(other[section]) for section in other if other[section] != base[section]}
    for key, value in run.items():
        if key not in GROUPS:
            *sections, last = key.split(".")
            at = found
            for section in sections:
                at = at[section]
            at[last] = value
    return RunConfig.parse(found)


def diagnostics(name: str) -> list[tuple[str, ...]]:
    """Kind and overrides of the commands of larosa.cli.diagnose in a sweep's header."""
    start = "#   python -m larosa.cli.diagnose "
    lines = (SWEEPS / f"{name}.yaml").read_text().splitlines()
    return [tuple(shlex.split(line.removeprefix(start))) for line in lines if line.startswith(start)]


def without_hub(config: RunConfig) -> bool:
    texts, tasks = [config.calibration.text, *config.texts.values()], config.evaluation.zero_shot
    from_hub = {config.model.source, tasks.source if tasks.tasks else "", *(text.source for text in texts)}
    return "hub" not in from_hub


@pytest.mark.parametrize("name", sorted(TABLES | FIGURES))
def test_a_command_of_every_sweep_plans_for_smollm2_without_the_hub(name: str) -> None:
    offline = []
    for given in commands(name):
        runs = runs_of(name, given)  # texts, tasks and model are the same in all of them but for calibrated_on
        config = settings(name, runs[-1], runs[0])
        offline += [given] if config.model.name == "smollm2-135m" and without_hub(config) else []
    assert offline


def test_diagnostics_are_written_where_the_figures_read_and_takes_one_run_a_model() -> None:
    for name, kind in {"figure1": "surface", "figure5": "error_curve"}.items():
        for given in commands(name):
            (run,) = runs_of(name, given)
            config = settings(name, run, run)
            assert (config.diagnostics.kind, config.output) == (kind, "analysis/records")
            assert "dense" not in _check(kind, config)
    for name, kind in {"figure3": "thresholds", "table08": "covariance"}.items():
        found = diagnostics(name)
        assert [words[0] for words in found] == [kind, kind]
        own = [read_settings(list(words[1:])) for words in found]
        assert [config.output for config in own] == ["analysis/records"] * 2
        assert [config.model.name for config in own if without_hub(config)] == ["smollm2-135m"]
        for config in own:
            _check(kind, config)


def test_every_command_of_the_readme_composes() -> None:
    start = "python -m larosa.cli.diagnose "
    printed = [line.partition(" # ")[0].strip() for line in README.splitlines() if line.startswith(start)]
    assert {line.split()[3] for line in printed} == {"surface", "error_curve", "thresholds", "covariance"}
    for line in printed:
        kind, *words = shlex.split(line.removeprefix(start))
        config = read_settings(words)
        assert config.output == "analysis/records"
        _check(kind, config)


def test_table19_is_counted_without_a_run() -> None:
    """Its sweep is for models that the paper has not, and times and evaluates nothing."""
    for given in commands("table19"):
        (run,) = runs_of("table19", given)
        config = settings("table19", run, run)
        assert config.model.name not in paper.models()
        assert (config.texts, config.evaluation.zero_shot.tasks, config.evaluation.speed) == ({}, (), None)


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_every_command_plans(name: str) -> None:
    assert commands(name)
    for given in commands(name):
        runs, refused = runs_of(name, given), []
        if name in GRIDS:  # some hundred points that differ in four numbers
            runs = runs[::7]
        for run in runs:
            try:
                plan_runs(settings(name, run, runs[0]))
            except ScheduleError:
                refused.append(run)
        assert not [run for run in refused if run.get("row") != "cats" and name not in GRIDS]
        assert len(refused) <= len(runs) / 2


def test_settings_are_those_that_hydra_composes() -> None:
    given = ("conditions=smollm2-135m", "calibrated_on=boolq-passages,gsm8k", "texts=hellaswag")
    runs = runs_of("table07", given)
    whole = composed("table07", tuple(f"{key}={value}" for key, value in runs[-1].items()))[0]
    assert settings("table07", runs[-1], runs[0]) == RunConfig.parse(whole)


def test_every_table_and_figure_has_its_sweep_and_its_line() -> None:
    assert set(NAMES) >= TABLES | FIGURES | {"smoke"}
    assert all(f"`{name}.yaml`" in README for name in LISTS)
    lines = [line for line in README.splitlines() if line.startswith("| `")]
    assert sorted(line.split("`")[1] for line in lines) == NAMES


def printed(folder: Path) -> set[str]:
    """The commands that a report names: without any record, and with runs of models that the paper has not."""
    found: set[str] = set()
    runs = [made(*row, model=name, texts=("lambada",)) for name in ("smollm2-135m", "tiny-llama") for row in _RUNS]
    write(folder / "some", runs)
    for records in (folder / "none", folder / "some"):
        held = store.read(records, folder / "none")
        tables = every_table.build(held, flops.shapes(build.MODELS))
        found |= {missing.command for table in tables for missing in table.missing if missing.command is not None}
        found |= {word for drawn in every_figure.build(held) for word in drawn.missing.split("`")}
    return {own for own in found if own.startswith("python run.py ")}


_RUNS = (("dense", 0.0), ("larosa", 0.5))


def test_every_command_that_a_report_names_plans(tmp_path: Path) -> None:
    own = {"smollm2-135m": set(), "tiny-llama": set()}
    for words in sorted(printed(tmp_path)):
        start, given = words.split(" -m ")
        name, overrides = start.rpartition(" ")[2], tuple(shlex.split(given))
        model = overrides[0].partition("=")[2]
        if model in own:
            own[model].add(name)
        if overrides in commands(name) or model in composed(name, ())[1]["model"].split(","):
            continue  # a part of what a header's command plans
        runs = runs_of(name, overrides)
        middle = runs[len(runs) // 2]  # the corners of Algorithm 1's grid are out of reach
        short = model == "tiny-llama" and name in ("table04", "table08")  # reads fewer tokens than are generated
        with pytest.raises(ZeroShotError, match="generates up to") if short else nullcontext():
            plan_runs(settings(name, middle, middle))
    assert all({"table01", "table02", "table05", "table08", "table11"} <= names for names in own.values())


def test_commands_are_those_of_the_headers() -> None:
    start = "python run.py --config-dir sweeps --config-name"
    assert command("table02", "llama3-70b") == f"{start} table02 -m model=llama3-70b"
    assert command("table02", "tiny-llama") == f"{start} table02 -m model=tiny-llama"
    assert command("table11", "llama3-70b") == f"{start} table11 -m model=llama3-70b"
    for name in sorted(TABLES & set(NAMES)):
        small, *_ = (given for given in commands(name) if any("=smollm2-135m" in word for word in given))
        assert shlex.split(command(name, "smollm2-135m") or "") == [*start.split(), name, "-m", *small]
    for model in ("llama2-70b", "llama3-70b", "qwen2.5-72b"):
        assert command("table03", model) is None  # the decoder runs on one GPU
    for number, model in zip(range(12, 19), paper.models(), strict=False):
        assert command(f"table{number}", model) == f"{start} table01 -m model={model}"
    assert command("table03", "llama2-7b") == f"{start} table03 -m model=llama2-7b"
