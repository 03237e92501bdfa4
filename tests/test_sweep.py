"""Sweeps: what fails is noted and does not stop the others, parallel runs share, a killed sweep goes on."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typed
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, read_write
from test_config import parse
from test_pipeline import overrides as overrides  # the fixture

from conftest import CONF, ROOT
from larosa.cli.invocation import command
from larosa.cli.launch import in_sweep
from larosa.cli.sweep import Outcome, Sweep, SweepCallback, progress
from larosa.experiment import failures, pipeline, runner
from larosa.experiment.failures import RunsFailedError
from larosa.experiment.pipeline import run
from larosa.experiment.session import Sessions, open_session
from larosa.records.disk import claimed


def sweep(*words: str, said: Path) -> subprocess.CompletedProcess[str]:
    return typed.typed("-m", "baseline=none", *words, said=said)


def records(tmp_path: Path) -> dict[str, float]:
    """Folder -> when its record was written."""
    return {path.parent.name: path.stat().st_mtime for path in (tmp_path / "runs").glob("*/result.json")}


def test_a_failed_cell_is_noted_the_others_go_on_and_success_removes_the_note(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_measure = runner.measure

    def broken(cell: Any, session: Any) -> Any:
        if cell.config.method.name == "magnitude":
            raise ValueError(f"{tmp_path / 'secret' / 'file.bin'} does not fit")
        return true_measure(cell, session)

    monkeypatch.setattr(runner, "measure", broken)
    with pytest.raises(RunsFailedError, match="1 of 3 runs"):
        run(parse(*overrides), "python run.py seed=0")
    assert len(records(tmp_path)) == 2
    (note,) = (tmp_path / "runs").glob("*/failed.json")
    found = json.loads(note.read_text())
    assert found["error"] == "ValueError"
    assert found["message"] == "file.bin does not fit"
    assert found["command"] == "python run.py seed=0"
    assert found["asked"]["method"] == "magnitude"
    assert "in broken: raise ValueError(" in found["traceback"][-1]
    assert str(tmp_path) not in note.read_text()
    monkeypatch.setattr(runner, "measure", true_measure)
    assert len(run(parse(*overrides))) == 3
    assert not list((tmp_path / "runs").glob("*/failed.json"))


def test_runs_of_one_bench_load_it_once_and_a_failure_loads_it_again(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    true_open = open_session
    monkeypatch.setattr(
        "larosa.experiment.session.open_session", lambda *given: opened.append("x") or true_open(*given)
    )
    sessions = Sessions()
    run(parse(*overrides, "baseline=none", "method=magnitude"), "", sessions)
    run(parse(*overrides, "baseline=none", "method=magnitude", "sparsity=0.5"), "", sessions)
    assert len(opened) == 1
    run(parse(*overrides, "baseline=none", "method=magnitude", "seed=1"), "", sessions)
    assert len(opened) == 2
    true_measure = runner.measure
    monkeypatch.setattr(runner, "measure", lambda *_: 1 / 0)
    with pytest.raises(RunsFailedError, match="division"):
        run(parse(*overrides, "baseline=none", "method=magnitude", "seed=1", "sparsity=0.3"), "", sessions)
    monkeypatch.setattr(runner, "measure", true_measure)
    run(parse(*overrides, "baseline=none", "method=magnitude", "seed=1", "sparsity=0.3"), "", sessions)
    assert len(opened) == 3


def test_an_overfull_disk_costs_the_note_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    failures.write(tmp_path / "file" / "cell", "magnitude", OSError("full"), "", {})
    assert "could not be written" in caplog.text


def test_the_progress_line() -> None:
    outcomes = [Outcome(["a"], measured=True), Outcome(["b"]), Outcome(["c"], {"teal": "no"})]
    assert progress("t", 6, outcomes, 60.0) == "t: 2 of 6 runs done, 1 failed, 3 left, 0:03:00 left"
    assert progress("t", 3, outcomes, 60.0) == "t: 2 of 3 runs done, 1 failed, 0 left"
    assert progress("t", 3, [], 60.0) == "t: 0 of 3 runs done, 0 failed, 3 left"


def test_runs_of_a_sweep_share_a_group_and_a_continued_one_joins_it(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*overrides, "baseline=none", "sparsity=0.4,0.5"]
    groups = []
    for count in (1, 2):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", words[:-1], return_hydra_config=True)
        with read_write(config):
            config.hydra.overrides.task = words
        callback = SweepCallback()
        callback.on_multirun_start(config)
        told = [word.split("=")[1].strip("'") for word in config.hydra.overrides.hydra[-4:]]
        folder, group, starter, _ = told
        groups.append(group)
        assert Path(folder).parent == tmp_path / "runs"
        assert len(list((tmp_path / "runs").glob(".sweep*"))) == count
        assert copy.copy(callback).__dict__ == {"_line": None}  # launchers send it so
    assert groups[0] == groups[1]
    assert groups[0].startswith("config-")
    seen: list[Any] = []
    monkeypatch.setattr(pipeline, "Tracker", lambda config, *_, **__: seen.append(config.tracking.group) or 1 / 0)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = compose("config", words[:-1])
    assert int(starter) == os.getpid()
    given = Sweep(groups[0], Path(folder), os.getpid(), "python run.py")
    in_sweep(given, settings, ["a=1"], "")
    assert seen == groups[:1]
    (outcome,) = given.outcomes()
    assert outcome.overrides == ["a=1"]
    assert list(outcome.failed.values()) == ["division by zero"]


def test_a_sweep_goes_on_past_failures_of_every_kind_and_says_so(overrides: list[str], tmp_path: Path) -> None:
    first = sweep(*overrides, "method=cats,magnitude,nothing", "sparsity=0.6", said=tmp_path / "first")
    assert first.returncode == 2  # a choice that does not exist is said at once, before anything runs
    assert "nothing" in first.stderr
    assert not records(tmp_path)
    words = ["method=cats,magnitude", "sparsity=0.6", "calibration.sequences=8,0"]
    done = sweep(*overrides, *words, said=tmp_path / "said")
    assert done.returncode == 2
    assert len(records(tmp_path)) == 1
    assert "1 of 4 runs done, 3 failed, 0 left" in done.stderr
    assert "failed: cats (calibration.sequences=8 method=cats): method=cats skips up and down only" in done.stderr
    notes = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/failed.json")]
    assert sorted(note["error"] for note in notes) == ["ConfigError", "ConfigError", "ScheduleError"]
    assert not list((tmp_path / "runs").glob(".sweep*"))


def test_the_noted_command_measures_the_failed_cell_again(overrides: list[str], tmp_path: Path) -> None:
    """Also of a sweep with a folder and a name of its own, whose settings no override repeats."""
    folder = tmp_path / "my sweeps"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        "defaults: [config, _self_]\nevaluation: {perplexity: {batch_size: 2}}\n"
        "hydra: {mode: MULTIRUN, sweeper: {params: {method: 'cats,magnitude', sparsity: '0.6'}}}\n"
    )
    given = [
        "--config-dir",
        str(folder),
        "--config-name",
        "mine",
        "-m",
        *overrides,
        "baseline=none",
        "schedule=uniform",
    ]
    done = typed.typed(*given, said=tmp_path / "said")
    assert done.returncode == 2, done.stderr
    (note,) = (tmp_path / "runs").glob("*/failed.json")
    before = json.loads(note.read_text())
    start = ["python", "run.py", "--config-dir", str(folder), "--config-name", "mine", "-m", "method=cats"]
    words = shlex.split(before["command"])
    assert words[: len(start)] == start
    assert f"output={tmp_path / 'runs'}" in words
    note.unlink()
    typed.typed(*words[2:], said=tmp_path / "said")
    after = json.loads(note.read_text())  # the same cell has the same folder
    assert {key: after[key] for key in ("asked", "label", "message")} == {
        key: before[key] for key in ("asked", "label", "message")
    }
    assert len(records(tmp_path)) == 1


@pytest.mark.parametrize(("sources", "name", "sweep_of", "expected"), [
    ([], "config", None, "python run.py 'texts=[a,b]' output=runs/x"),
    ([("command-line", "/here/sweeps"), ("main", "/here/conf")], "table02", Sweep("g", Path(), 0, "larosa run"),
     "larosa run --config-dir sweeps --config-name table02 -m 'hydra.searchpath=[own]' 'texts=[a,b]' output=runs/x"),
])  # fmt: skip
def test_a_command_has_all_that_shapes_the_result_and_says_where_it_goes(
    sources: list[tuple[str, str]], name: str, sweep_of: Sweep | None, expected: str
) -> None:
    runtime = {"cwd": "/here", "config_sources": [{"provider": one, "path": path} for one, path in sources]}
    task = ["texts=[a,b]", "output=/here/runs/x"]
    searched = ["hydra.searchpath=[/here/own]", "hydra/launcher=joblib"] if sources else []
    hydra = {"runtime": runtime, "job": {"config_name": name}, "overrides": {"task": task, "hydra": searched}}
    assert command(OmegaConf.create(hydra), sweep_of) == expected
    for elsewhere in ("/disk/runs", "/disk/here/runs", "~/here/runs"):  # in which the working directory does not begin
        hydra["overrides"]["task"] = ["texts=[a,b]", f"output={elsewhere}"]
        assert shlex.split(command(OmegaConf.create(hydra), sweep_of))[-1] == f"output={elsewhere}"


def test_a_killed_sweep_goes_on_where_it_was(overrides: list[str], tmp_path: Path) -> None:
    words = [*overrides, "method=magnitude", "sparsity=0.4,0.5"]
    process = typed.start("-m", "baseline=none", *words, said=tmp_path / "killed")
    typed.until(process, lambda: records(tmp_path), "its first record")
    process.kill()
    process.join()
    before = records(tmp_path)
    assert len(before) == 1
    done = sweep(*words, said=tmp_path / "said")
    assert done.returncode == 0, done.stderr
    after = records(tmp_path)
    assert len(after) == 2
    assert before.items() <= after.items()
    assert "is done already" in done.stderr
    assert "2 of 2 runs done, 0 failed, 0 left" in done.stderr
    assert not list((tmp_path / "runs").glob(".sweep*"))  # also what the killed one left


LAUNCHERS = {"joblib": "joblib", "submitit_local": "submitit", "ray": "ray"}
SLOW = [pytest.param("submitit_local", marks=pytest.mark.slow)]  # three more processes that import torch


def installed(launcher: str) -> bool:
    try:
        metadata.distribution(f"hydra-{LAUNCHERS[launcher]}-launcher")
    except metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.parametrize("launcher", ["joblib", *SLOW, "ray"])
def test_launchers_run_every_cell_and_measure_a_shared_one_once(
    launcher: str, overrides: list[str], tmp_path: Path
) -> None:
    if not installed(launcher):
        done = sweep(*overrides, f"hydra/launcher={launcher}", "sparsity=0.4,0.5", said=tmp_path / "said")
        assert done.returncode == 1
        assert f"this launcher needs hydra-{LAUNCHERS[launcher]}-launcher: pip install" in done.stderr
        pytest.skip(f"the launcher {launcher} is not installed: that is said")
    words = [f"hydra/launcher={launcher}", "method=magnitude", "sparsity=0.4,0.45,0.995", "baseline=dense"]
    command = [sys.executable, str(ROOT / "run.py"), "-m", *overrides, *words]  # launchers need a process of their own
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2, done.stderr
    assert "2 of 3 runs done, 1 failed, 0 left" in done.stderr
    assert sorted(name.split("-")[2] for name in records(tmp_path)) == ["dense", "magnitude", "magnitude"]
    logs = [path.read_text() for path in (tmp_path / "runs" / ".submitit").rglob("*.err")]
    assert "".join([done.stderr, *logs, done.stdout]).count("measuring dense") == 1


def test_a_cell_is_held_by_one_process(tmp_path: Path) -> None:
    """The second one waits for the first, also when the first is killed."""
    fork = multiprocessing.get_context("fork")
    inside = fork.Semaphore(0)

    def hold() -> None:
        with claimed(tmp_path):
            inside.release()
            time.sleep(60)

    first, second = (fork.Process(target=hold, daemon=True) for _ in range(2))
    first.start()
    assert inside.acquire(timeout=60)
    second.start()
    assert not inside.acquire(timeout=0.5)
    first.kill()
    assert inside.acquire(timeout=60)
    second.kill()
    second.join()
    with claimed(tmp_path):
        pass
