"""Runs of one condition share a table; what was measured apart is put together, what differs is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from made_records import Record, made, score, seven
from test_paper_tables import at, block, rows_of, tables

from conftest import CONF, ROOT
from larosa_analysis.compact import compact
from larosa_analysis.records import store
from larosa_analysis.records.run import Run
from larosa_analysis.report.main_result import results
from larosa_analysis.tables.group import every
from larosa_analysis.tables.spec import SPECS

LATER = "2000-01-02T00:00:00+00:00"
REASONING = ("hendrycks_math500", "gpqa_diamond_cot_zeroshot", "aime24")


def reasoned(method: str, level: float, chat_template: bool = True, new_tokens: int = 32768) -> Record:
    run = made(method, level, model="r1-distill-llama-8b", texts=())
    run["metrics"]["zero_shot"] = {task: score(task, [1, 0] * 50, metric="exact_match") for task in REASONING}
    asked = {"chat_template": chat_template, "max_new_tokens": new_tokens}
    run["config"]["evaluation"]["zero_shot"] |= asked
    return run | {"identity": f"{run['identity']} {asked}"}


def tuned(level: float, learning_rate: float, **more: Any) -> Record:
    run = made("larosa", level, **more)
    run["label"] = "larosa/tuned (online, output_aware, per sublayer, int4, tuned)"
    run["config"]["method"] |= {
        "preset": "larosa/tuned",
        "form": "online",
        "tuning": {"learning_rate": learning_rate},
    }
    return run | {"identity": f"{run['identity']} {learning_rate}"}


def avoiding(calibration: str, examples: range, **more: Any) -> Record:
    run = made("larosa", calibration=calibration, tasks=seven(0.6), **more)
    right = [seven(0.6)["boolq"][number] for number in examples]
    run["metrics"]["zero_shot"]["boolq"] = score("boolq", right, list(examples), excluded=100 - len(examples))
    return run


def test_every_task_of_a_table_is_a_task_of_some_sweep() -> None:
    asked: set[str] = set()
    for path in [*(ROOT / "sweeps").rglob("*.yaml"), *(CONF / "evaluation").glob("*.yaml")]:
        evaluation = yaml.safe_load(path.read_text())
        evaluation = evaluation.get("evaluation", evaluation) if isinstance(evaluation, dict) else {}
        asked |= set((evaluation.get("zero_shot") or {}).get("tasks") or []) if isinstance(evaluation, dict) else set()
    assert {task for spec in SPECS for task in spec.tasks} <= asked


def test_generated_answers_fill_table_4(tmp_path: Path) -> None:
    found = block(tables(tmp_path, [reasoned("dense", 0.0), reasoned("larosa", 0.25)])[4], "r1-distill-llama-8b")
    for column in ("MATH-500, %, ours", "GPQA-Diamond, %, ours", "AIME-24, %, ours"):
        assert at(found, "25", "larosa", column).value == 50.0
    assert "in the chat template, at most 32768 new tokens" in found.caption


def test_other_prompts_and_answers_are_another_condition(tmp_path: Path) -> None:
    runs = [reasoned("dense", 0.0), reasoned("larosa", 0.25), reasoned("larosa", 0.4), reasoned("larosa", 0.5, False)]
    table = tables(tmp_path, [*runs, reasoned("larosa", 0.5, new_tokens=256)])[4]
    found = block(table, "r1-distill-llama-8b")
    assert at(found, "50", "larosa", "AIME-24, %, ours").text == "missing"
    assert at(found, "40", "larosa", "AIME-24, %, ours").value == 50.0
    assert table.excluded == ["r1-distill-llama-8b: 2 records: chat template or new tokens of aime24"]


def test_what_was_measured_apart_stands_in_one_row(tmp_path: Path) -> None:
    newer = made("larosa", 0.25, created=LATER)
    runs = [made("dense", 0.0, tasks=seven(0.7), texts=()), made("dense", 0.0, created=LATER)]
    runs += [made("larosa", 0.25, tasks=seven(0.6), texts=()), newer | {"versions": {"torch": "2.99"}}]
    runs += [made("larosa", 0.25, texts=(), tasks={"mmlu": [1, 0] * 50}, created=LATER)]
    found = tables(tmp_path, runs)
    varied = [own for own in rows_of(block(found[7], "llama3-8b")) if own["Acc7, %, ours"].value is not None]
    assert [own["sparsity, %"].text for own in varied] == ["0", "25"]
    assert all(own["WikiText-2 perplexity, ours"].value is not None for own in varied)
    assert "2000-01-01 to 2000-01-02" in block(found[7], "llama3-8b").caption
    assert "2.99" in block(found[7], "llama3-8b").caption
    assert found[7].excluded == []
    first = block(found[1], "llama3-8b")
    assert at(first, "25", "larosa", "Acc7, %, ours").value == pytest.approx(100 * _seven(0.6))
    assert at(first, "25", "larosa", "MMLU 5-shot, %, ours").value == 50.0


def _seven(share: float) -> float:
    return float(np.mean([np.mean(own) for own in seven(share).values()]))


def test_of_what_was_measured_twice_the_newest_stands(tmp_path: Path) -> None:
    runs = [made("dense", 0.0), made("larosa"), made("larosa", nats=2.2, tasks=seven(0.5), created=LATER)]
    table = tables(tmp_path, runs)[2]
    shown = at(block(table, "llama3-8b"), "50", "larosa", "WikiText-2 perplexity, ours").value
    assert shown == runs[2]["metrics"]["perplexity"]["wikitext2"]["perplexity"]
    assert table.excluded == ["llama3-8b: 1 record: an older measurement"]


def test_examples_of_every_task_but_boolq_agree_where_the_calibration_varies(tmp_path: Path) -> None:
    fewer = made("larosa", 0.4, tasks=seven(0.6, count=10), texts=())
    table = tables(tmp_path, [made("dense", 0.0, tasks=seven(0.7)), made("larosa", 0.25, tasks=seven(0.6)), fewer])[7]
    shown = [own for own in rows_of(block(table, "llama3-8b")) if own["Acc7, %, ours"].value is not None]
    assert [own["sparsity, %"].text for own in shown] == ["0", "25"]
    assert table.excluded == ["llama3-8b: 1 record: examples of arc_challenge"]


def test_boolq_is_scored_on_what_all_calibrations_leave(tmp_path: Path) -> None:
    runs = [made("dense", 0.0, tasks=seven(0.7)), avoiding("a", range(60)), avoiding("b", range(40, 100))]
    found = block(tables(tmp_path, runs)[7], "llama3-8b")
    ours = {own["calibration"].text: own["Acc7, %, ours"] for own in rows_of(found)}
    share = {task: np.mean(own[40:60] if task == "boolq" else own) for task, own in seven(0.6).items()}
    assert ours["a"].value == ours["b"].value == pytest.approx(100 * np.mean(list(share.values())))
    assert "boolq (acc, 20 of 1000" in found.caption
    apart = tables(tmp_path / "apart", [runs[0], avoiding("a", range(0, 100, 2)), avoiding("b", range(1, 100, 2))])[7]
    assert all(own["Acc7, %, ours"].value is None for own in rows_of(block(apart, "llama3-8b")))
    assert apart.excluded == ["llama3-8b: boolq: its runs have no example in common"]


def test_settings_that_a_label_does_not_tell_are_a_condition(tmp_path: Path) -> None:
    runs = [made("dense", 0.0), tuned(0.25, 1e-3), tuned(0.4, 1e-3), tuned(0.5, 5e-4, created=LATER)]
    table = tables(tmp_path, runs)[2]
    found = block(table, "llama3-8b")
    shown = [own["sparsity, %"].text for own in rows_of(found) if own["method"].text.startswith("larosa/tuned")]
    assert shown == ["25", "40"]
    assert len(table.excluded) == 1
    assert "1 record: settings of larosa/tuned" in table.excluded[0]
    version = tuned(0.5, 1e-3) | {"tuning_version": 2}
    assert Run.of(version).settings != Run.of(runs[1]).settings
    seeds = made("larosa", 0.4)
    seeds["config"]["seed"] = 1
    assert tables(tmp_path / "seeds", [made("dense", 0.0), made("larosa"), made("teal"), seeds])[2].excluded == [
        "llama3-8b: 1 record: seed"
    ]


def test_the_version_of_tuning_is_kept() -> None:
    record = made("larosa")
    shaped = {
        "semantics_version": record["semantics_version"],
        "model": record["model"],
        "method": {"tuning_version": 2},
    }
    once = compact(record | {"identity_inputs": shaped})
    assert once["tuning_version"] == 2
    assert compact(once) == once
    assert "tuning_version" not in compact(record)


def test_tasks_alone_make_no_group_of_texts(tmp_path: Path) -> None:
    runs = [made("dense", 0.0), made("larosa", texts=(), tasks=seven(0.5))]
    assert list(every([Run.of(record) for record in runs], texts=True, tasks=())) == []
    path = tmp_path / "records"
    tables(path, runs)
    assert results(store.read(path, path)) == []
