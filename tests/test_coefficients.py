"""Algorithm 1: every cell equals an applied plan, slips are recorded, a stopped search goes on, runs use the result."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_config import parse
from test_pipeline import overrides  # noqa: F401

from conftest import CONF, ROOT
from larosa import coefficients
from larosa.cells import plan_cells
from larosa.config import ConfigError, RunConfig
from larosa.evaluation.perplexity import perplexity
from larosa.grid import COLUMNS, Grid, GridError
from larosa.methods.registry import METHODS
from larosa.pipeline import open_bench, read_documents
from larosa.sites import ModelShape
from larosa.sparsity.handle import apply
from larosa.sparsity.schedule import ScheduleError

ALPHAS = "allocation.alphas=[0.7,1.0]"


@pytest.fixture
def settings(overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    return [*overrides, "baseline=none", "schedule.path=mine", ALPHAS]


def cells(path: Path) -> dict[tuple[float, float], dict[str, float]]:
    content = json.loads(path.with_suffix(".grid.json").read_text())
    return {(cell["h1"], cell["h3"]): cell for cell in content["cells"]}


@pytest.mark.parametrize(("method", "count"), [("larosa", "bytes"), ("teal", "nominal")])
def test_cells_are_what_applied_plans_measure(method: str, count: str, settings: list[str]) -> None:
    chosen = [*settings, f"method={method}", f"schedule.count={count}", "calibration.probe_sequences=2"]
    path = coefficients.run(parse(*chosen))
    found = cells(path)
    assert len(found) == 4
    for a1, a3 in ((0.7, 1.0), (1.0, 1.0)):
        cell = found[a1, a3]
        assert cell["h2"] == pytest.approx(4 - 3 * a1)
        assert cell["h4"] == pytest.approx((2 + 2.5 - 2 * a3) / 2.5)
        alphas = f"schedule.coefficients={{h1:{a1},h2:{cell['h2']},h3:{a3},h4:{cell['h4']}}}"
        config = parse(*chosen, alphas)
        bench = open_bench(config, read_documents(config))
        shape, levels = ModelShape.of(bench.model.config), list(plan_cells(config).values())[-1].levels
        plan = METHODS[method](config.method, shape, levels, config.tokens, bench.calibrator)
        with apply(bench.model, plan):
            expected = perplexity(bench.model, bench.calibration.ids[:2], 1, "test")["perplexity"]
        assert cell["perplexity"] == pytest.approx(expected, rel=1e-6)
    best = min(found.values(), key=lambda cell: cell["perplexity"])
    content = json.loads(path.read_text())
    assert content["levels"] == {site: [best[site]] * 3 for site in ("h1", "h2", "h3", "h4")}
    assert content["made_by"]["count"] == count


def test_levels_of_one_or_more_are_recorded_and_never_chosen(settings: list[str]) -> None:
    path = coefficients.run(parse(*settings, "sparsity=0.6", "schedule.count=nominal", "method=magnitude"))
    found = cells(path)
    for a3 in (0.7, 1.0):
        assert found[0.7, a3]["perplexity"] is None
        assert "h2, layer 0 would need level 1.140" in str(found[0.7, a3]["impossible"])
        assert found[1.0, a3]["impossible"] is None
    assert json.loads(path.read_text())["levels"]["h1"] == [1.0] * 3
    rows = list(csv.DictReader(path.with_suffix(".grid.csv").open()))
    assert [row["perplexity"] == "" for row in rows] == [True, True, False, False]
    assert path.with_suffix(".grid.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(GridError, match="could be measured"):
        coefficients.run(parse(*settings, "sparsity=0.7", "schedule.count=nominal", "method=magnitude",
                               "allocation.alphas=[0.7]", "schedule.path=none"))  # fmt: skip
    with pytest.raises(ScheduleError, match=r"a2 = -0\.2"):
        plan_cells(parse("schedule=constrained", "schedule.coefficients.h1=1.4"))


def test_a_stopped_search_goes_on(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def stop_at_third(*args: object) -> dict[str, object]:
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(args[-1])
        return perplexity(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(coefficients, "perplexity", stop_at_third)
    config = parse(*settings, "method=magnitude")
    with pytest.raises(KeyboardInterrupt):
        coefficients.run(config)
    path = Path(str(config.schedule.path))
    before = cells(path)
    assert len(before) == 2
    assert not path.exists()
    measured.clear()
    coefficients.run(config)
    assert measured == ["a1 = 1, a3 = 0.7", "a1 = 1, a3 = 1"]
    assert before.items() <= cells(path).items()
    monkeypatch.setattr(coefficients, "open_bench", lambda *_: pytest.fail("loaded though all is measured"))
    first = path.read_bytes()
    path.unlink()
    coefficients.run(config)
    assert path.read_bytes() == first
    with pytest.raises(GridError, match="another search"):
        coefficients.run(parse(*settings, "method=magnitude", "sparsity=0.3"))


def test_a_damaged_grid_is_named_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.grid.json"
    path.write_text('{"schema": 1, "ident')
    assert (0.7, 0.7) not in Grid(path, {"a": 1}, force=False)
    assert "is damaged" in caplog.text
    Grid(path, {"a": 1}, force=True).add({**dict.fromkeys(COLUMNS), "h1": 0.7, "h3": 0.7, "perplexity": 12.5})
    assert (0.7, 0.7) in Grid(path, {"a": 1}, force=False)
    caplog.clear()
    path.write_text(path.read_text().replace("12.5", "11.5"))
    assert (0.7, 0.7) not in Grid(path, {"a": 1}, force=False)
    assert "is damaged (its checksum does not match" in caplog.text


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(ConfigError, match="would measure alike"):
        coefficients.run(
            parse("tokens=decode_only", "texts=none", "evaluation.zero_shot.tasks=[]", "schedule.path=mine")
        )


def test_the_sweep_is_the_same_grid() -> None:
    every = parse().allocation.alphas
    with initialize_config_dir(str(ROOT / "sweeps"), version_base="1.3"):
        search = [f"hydra.searchpath=[file://{CONF}]"]
        params = compose("algorithm1", search, return_hydra_config=True).hydra.sweeper.params
        alphas = {site: params[f"schedule.coefficients.{site}"].split(",") for site in ("h1", "h3")}
        for site in alphas:
            assert tuple(float(value) for value in alphas[site]) == every
        for a1, a3 in zip(alphas["h1"][::5], alphas["h3"][::5], strict=True):
            cell = [f"schedule.coefficients.h1={a1}", f"schedule.coefficients.h3={a3}", "sparsity=0.4"]
            tree: Any = OmegaConf.to_container(compose("algorithm1", [*search, *cell]), resolve=True)
            (levels,) = (cell.levels.level for cell in plan_cells(RunConfig.parse(tree)).values())
            assert levels["h2"][0] / levels["h1"][0] == pytest.approx((4 - 3 * float(a1)) / float(a1))


@pytest.mark.slow
def test_the_sweep_runs_its_cells_and_names_impossible_ones(settings: list[str], tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "run.py"),
        f"--config-dir={ROOT / 'sweeps'}",
        "--config-name=algorithm1",
        "-m",
    ]
    command += [*settings[:-3], "schedule.coefficients.h1=0.7,1.0", "schedule.coefficients.h3=0.7"]
    command += ["sparsity=0.6", "method=magnitude", "schedule.count=nominal"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "would need level 1.140" in done.stderr
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/result.json")]
    assert [record["config"]["schedule"]["coefficients"]["h1"] for record in records] == [1.0]
