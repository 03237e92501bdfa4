"""The comparison of methods: every schedule measured, levels corrected, net bytes met, interruption survived."""

from __future__ import annotations

import functools
import json
import shlex
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from test_pipeline import write_text

from conftest import ROOT
from larosa.cli import compare as command
from larosa.cli.command import read_settings
from larosa.cli.compare import Comparison, compare
from larosa.config.run import ConfigError
from larosa.experiment import runner
from larosa.experiment.plan_runs import plan_runs
from larosa.records.disk import claimed
from larosa_analysis import compact

SETTINGS = [
    "model=tiny-llama", "model.shape.hidden_size=64", "model.shape.num_attention_heads=4",
    "model.shape.num_key_value_heads=2", "calibration=text", "calibration.sequences=4", "calibration.length=64",
    "calibration.probe_sequences=1", "texts=text", "evaluation.perplexity.length=64",
    "evaluation.perplexity.max_tokens=512", "evaluation.zero_shot.tasks=[]", "tracking=off",
]  # fmt: skip


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Comparison]:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path / "cache"))
    texts = [write_text(tmp_path / name, seed) for seed, name in enumerate(("a.txt", "b.txt"))]
    settings = [*SETTINGS, f"calibration.text.files=[{texts[0]}]", f"texts.text.files=[{texts[1]}]"]

    def build(*methods: dict[str, Any], **more: Any) -> Comparison:
        schedules = {"uniform": None, "official": None, "output": [], "greedy": ["allocation.algorithm=greedy"]}
        content = {"settings": settings, "levels": [0.4], "schedules": schedules, "methods": methods, **more}
        path = tmp_path / "list.yaml"
        path.write_text(json.dumps(content))  # JSON is YAML
        return Comparison.read(path)

    return build


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]


def kept_fractions(record: dict[str, Any]) -> float:
    return float(record["metrics"]["achieved_sparsity"]["text"]["weight_sparsity_mean"])


def test_every_schedule_is_measured_and_net_bytes_are_met(make: Callable[..., Comparison], tmp_path: Path) -> None:
    tuned = ["method=larosa/tuned", "method.transform_dtype=int4", "method.tuning.steps=2"]
    listed = make(
        {"settings": "method=magnitude", "schedules": ["uniform", "official", "output"]},
        {"settings": tuned, "schedules": ["uniform", "official"]},
    )
    assert compare(listed, [f"output={tmp_path / 'runs'}"]) == 0
    found = records(tmp_path / "runs")
    names = [(r["config"]["method"]["name"], r["config"]["schedule"]["name"]) for r in found]
    assert sorted(names)[0] == ("dense", "uniform")
    assert {pair for pair in names if pair[0] == "magnitude"} == {
        ("magnitude", name) for name in ("uniform", "official", "file")
    }
    net = [r for r in found if r["config"]["method"]["name"] == "larosa" and r["config"]["sparsity"] > 0.41]
    assert len(net) == 1
    assert 1 - net[0]["metrics"]["accounting"]["read_fraction"] == pytest.approx(0.4, abs=0.005)
    best = min((r for r in found if r["label"] == net[0]["label"] and r is not net[0]), key=mean_nats)
    assert net[0]["config"]["schedule"]["name"] == best["config"]["schedule"]["name"]


def test_a_damaged_schedule_is_found_again(
    make: Callable[..., Comparison], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed, output = make({"settings": "method=magnitude", "schedules": ["output"]}), [f"output={tmp_path / 'runs'}"]
    assert compare(listed, output) == 0
    (path,) = (tmp_path / "runs" / "schedules").glob("output-*.json")
    content = path.read_text()
    path.write_text(content.replace('"layers": 3', '"layers": 4'))
    assert compare(listed, output) == 0
    assert path.read_text() == content
    assert f"{path}: its checksum does not match" in caplog.text


def mean_nats(record: dict[str, Any]) -> float:
    text = record["metrics"]["perplexity"]["text"]
    return float(sum(text["block_nll_nats"]) / text["predicted_tokens"])


def test_thresholds_are_corrected_towards_the_level(make: Callable[..., Comparison], tmp_path: Path) -> None:
    listed = make({"settings": "method=teal", "schedules": ["uniform", "greedy"]})
    assert compare(listed, [f"output={tmp_path / 'runs'}"]) == 0
    teal = [r for r in records(tmp_path / "runs") if r["config"]["method"]["name"] == "teal"]
    first = [r for r in teal if r["config"]["sparsity"] == 0.4]
    again = [r for r in teal if r["config"]["sparsity"] != 0.4]
    assert len(first) == 2
    assert again
    assert min(abs(kept_fractions(r) - 0.4) for r in again) < min(abs(kept_fractions(r) - 0.4) for r in first)


def test_done_cells_are_not_measured_again_and_failures_do_not_stop_it(
    make: Callable[..., Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measured: list[str] = []
    real = runner.measure

    def count(cell: Any, session: Any) -> Any:
        measured.append(cell.config.method.label)
        return real(cell, session)

    monkeypatch.setattr(runner, "measure", count)
    entry = {"settings": "method=magnitude", "schedules": ["uniform"]}
    assert compare(make(entry), [f"output={tmp_path / 'runs'}"]) == 0
    assert measured == ["dense", "magnitude"]
    monkeypatch.setattr(command.allocate, "search", lambda *_: (_ for _ in ()).throw(ConfigError("no schedule today")))
    more = [{**entry, "schedules": ["output", "uniform"]}, {"settings": "method=wina", "schedules": ["uniform"]}]
    assert compare(make(*more), [f"output={tmp_path / 'runs'}"]) == 1
    assert "no schedule today" in caplog.text
    assert measured == ["dense", "magnitude", "wina", "wina"]  # the second at equal net bytes: column norms cost some


def test_a_failed_run_is_noted_and_success_removes_the_note(
    make: Callable[..., Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = runner.measure

    def broken(planned: Any, session: Any) -> Any:
        if planned.config.method.name == "magnitude":
            raise RuntimeError("no memory left")
        return real(planned, session)

    monkeypatch.setattr(runner, "measure", broken)
    listed = make(*({"settings": f"method={name}", "schedules": ["uniform"]} for name in ("magnitude", "teal")))
    assert compare(listed, [f"output={tmp_path / 'runs'}"]) == 1
    (note,) = (tmp_path / "runs").glob("*/failed.json")
    failure = json.loads(note.read_text())
    assert (failure["message"], failure["label"]) == ("no memory left", "magnitude")
    words = shlex.split(failure["command"])
    assert words[:2] == ["python", "run.py"]
    assert list(plan_runs(read_settings(words[2:])).values())[-1].folder == note.parent
    assert {r["config"]["method"]["name"] for r in records(tmp_path / "runs")} == {"dense", "teal"}
    monkeypatch.setattr(runner, "measure", real)
    assert compare(listed, [f"output={tmp_path / 'runs'}"]) == 0
    assert not note.exists()


def test_a_run_that_another_process_measures_is_waited_for(
    make: Callable[..., Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    listed, output = make({"settings": "method=magnitude", "schedules": ["uniform"]}), f"output={tmp_path / 'runs'}"
    assert compare(listed, [output]) == 0
    (path,) = (p for p in (tmp_path / "runs").glob("*/result.json") if "magnitude" in p.parent.name)
    content = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(runner, "measure", lambda *_: pytest.fail("measured beside the other process"))
    with ThreadPoolExecutor(1) as pool:
        with claimed(path.parent):
            waiting = pool.submit(compare, listed, [output])
            end = time.monotonic() + 60
            while not any("waiting for it" in line for line in caplog.messages):
                assert not waiting.done()
                assert time.monotonic() < end, "the comparison does not say that it waits"
                time.sleep(0.05)
            path.write_bytes(content)
        assert waiting.result(timeout=60) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"methods": [{"settings": "method=magnitude", "schedules": ["best"]}]}, "does not define: best"),
        ({"levels": [1.2]}, "less than 1"),
        ({"methods": []}, "at least 1"),
        ({"level": [0.4]}, "unknown key"),
        ({"methods": [{"settings": "method=magnitude", "sessions": ["best"]}]}, "sessions that it does not define"),
    ],
)
def test_a_list_that_cannot_work_is_refused(
    make: Callable[..., Comparison], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make({"settings": "method=magnitude"}, **more)


def test_sessions_repeat_the_methods_that_name_them(
    make: Callable[..., Comparison], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    once = {"settings": "method=wina", "schedules": ["uniform"]}
    both = {"settings": "method=larosa/paper", "schedules": ["uniform"], "sessions": ["short", "other seed"]}
    listed = make(once, both, sessions={"short": ["calibration.sequences=3"], "other seed": "seed=1"})
    output = [f"output={tmp_path / 'runs'}"]
    assert compare(listed, output) == 0
    assert any(m.startswith("5 runs to measure, 0 recorded") for m in caplog.messages)
    found = {
        (r["label"].split(" ")[0], r["config"]["seed"], r["config"]["calibration"]["sequences"])
        for r in records(tmp_path / "runs")
    }
    expected = {("dense", 0, 3), ("dense", 1, 4), ("wina", 0, 3), ("larosa/paper", 0, 3), ("larosa/paper", 1, 4)}
    assert found == expected
    (next((tmp_path / "runs").glob("*larosa-0.4*/result.json"))).unlink()
    caplog.clear()
    assert compare(listed, output) == 0
    assert any(m.startswith("1 runs to measure, 4 recorded. A recorded one took") for m in caplog.messages)


def test_compact_records_count_as_recorded(
    make: Callable[..., Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = make({"settings": "method=larosa/paper", "schedules": ["uniform"]})
    assert compare(listed, [f"output={tmp_path / 'runs'}"]) == 0
    kept = tmp_path / "kept.jsonl"
    assert compact.main([str(tmp_path / "runs"), str(kept)]) == 0
    monkeypatch.setattr(runner, "measure", lambda *_: pytest.fail("measured again"))
    assert compare(listed, [f"output={tmp_path / 'elsewhere'}"], [kept]) == 0
    forced = list[str]()
    monkeypatch.setattr(runner, "measure", lambda planned, _: forced.append(planned.config.method.name) or 1 / 0)
    assert compare(listed, [f"output={tmp_path / 'elsewhere'}", "force=true"], [kept]) == 2
    assert forced == ["dense", "larosa"]
    kept.write_text(kept.read_text().replace("larosa", "larose"))
    with pytest.raises(ConfigError, match=r"kept.jsonl, line \d is no compact record"):
        compare(listed, [f"output={tmp_path / 'elsewhere'}"], [kept])


@pytest.mark.parametrize("more", ["seed=1", "calibration.sequences=2", "evaluation.perplexity.max_tokens=64"])
def test_a_method_with_a_bench_of_its_own_is_refused(
    make: Callable[..., Comparison], more: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="one session serves all methods"):
        compare(make({"settings": ["method=magnitude", more]}), [f"output={tmp_path / 'runs'}"])


def test_found_schedules_belong_to_their_search(make: Callable[..., Comparison], tmp_path: Path) -> None:
    entry = {"settings": "method=magnitude", "schedules": ["output"]}
    out = [f"output={tmp_path / 'runs'}"]
    assert compare(make(entry), out) == 0
    assert compare(make(entry), [*out, "calibration.sequences=3"]) == 0
    assert len(list((tmp_path / "runs" / "schedules").glob("output-0.4-magnitude-*.json"))) == 2


def test_impossible_methods_are_refused_before_anything_is_measured(
    make: Callable[..., Comparison], tmp_path: Path
) -> None:
    with pytest.raises(Exception, match="out of its reach"):
        compare(make({"settings": "method=cats"}, levels=[0.7]), [f"output={tmp_path / 'runs'}"])
    assert not (tmp_path / "runs").exists()


cached_settings = functools.cache(lambda words: read_settings(list(words)))


def test_every_committed_list_can_be_planned() -> None:
    for path in sorted((ROOT / "sweeps").glob("*.yaml")):
        if "methods:" not in path.read_text():
            continue  # a Hydra sweep
        listed = Comparison.read(path)
        last = {(session, id(entry)): (session, entry, level) for session, entry, level in listed.tasks()}
        for session, entry, level in last.values():  # of each entry its last level
            words = [*listed.settings, *listed.sessions[session], *entry.settings, "baseline=none", "schedule=uniform"]
            config = cached_settings(tuple(words)).model_copy(update={"sparsity": level})
            assert list(plan_runs(config).values())
