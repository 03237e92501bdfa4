"""What could not be measured reaches the tables: from `failed.json` through compact records to a footnote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_records import Record, diagnostics, made, sealed, seven
from test_paper_tables import SHAPES, at, block, rows_of

from larosa.errors import LarosaError
from larosa.experiment import failures
from larosa.sparsity.schedule import ScheduleError
from larosa_analysis import compact
from larosa_analysis.records import failures as failed
from larosa_analysis.records import store
from larosa_analysis.records.entry import RecordsError
from larosa_analysis.tables import every, render
from larosa_analysis.tables.cells import Table


def cell(method: str, level: float, **more: Any) -> Record:
    """What a run of the made-up conditions asks for."""
    return {
        "model": "llama3-8b", "method": method, "label": method, "sparsity": level, "schedule": "uniform",
        "metric": "weight_bytes", "calibration": "wikitext2", "texts": ["wikitext2"], "tasks": [], "timed": False,
    } | more  # fmt: skip


def fail(runs: Path, error: Exception, asked: Record) -> None:
    failures.write(runs / f"{asked['method']}-{asked['sparsity']:g}", asked["label"], error, [], asked)


def gathered(tmp_path: Path) -> dict[int, Table]:
    out = tmp_path / "records" / "mine.jsonl"
    assert compact.main([str(tmp_path / "runs"), str(out)]) == 0
    return {table.number: table for table in every.build(store.read(out.parent, tmp_path / "none"), SHAPES)}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for record in (made("dense", 0.0), made("larosa")):
        path = tmp_path / "runs" / record["label"].partition(" ")[0].replace("/", "-") / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(sealed(record))
    return tmp_path / "runs"


def test_a_failure_stands_where_its_value_would(runs: Path, tmp_path: Path) -> None:
    fail(runs, ScheduleError("50 % is more than CATS can save.\nTry less"), cell("cats", 0.5))
    fail(runs, LarosaError(f"{tmp_path}/weights.bin is damaged"), cell("teal", 0.4))
    fail(runs, LarosaError("out of memory"), cell("wina", 0.4))
    fail(runs, LarosaError("other model"), cell("teal", 0.25, model="llama2-7b"))
    fail(runs, LarosaError("only timed"), cell("teal", 0.25, texts=[], timed=True))
    fail(runs, LarosaError("since measured"), cell("larosa/paper (absorbed, pca, per layer)", 0.5))
    table = gathered(tmp_path)[2]
    found = block(table, "llama3-8b")
    column = "WikiText-2 perplexity, ours"
    said = {
        method: (own.text, [table.footnotes[number - 1] for number in own.notes])
        for method, level in (("cats", "50"), ("teal", "40"), ("wina", "40"), ("teal", "25"))
        for own in [at(found, level, method, column)]
    }
    assert said["cats"] == ("cannot reach", ["50 % is more than CATS can save"])
    assert said["wina"] == ("failed", ["out of memory"])
    assert said["teal"] == ("missing", [])  # at 25 %
    broken = at(found, "40", "teal", column)
    assert (broken.text, table.footnotes[broken.notes[0] - 1]) == ("failed", "weights.bin is damaged")
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "records").iterdir())
    assert sum(own["method"].text == "cats" and own["sparsity, %"].text == "50" for own in rows_of(found)) == 1
    assert "since measured" not in render.markdown(table)


def test_a_failure_of_tasks_is_no_failure_of_texts(runs: Path, tmp_path: Path) -> None:
    (runs / "tasks").mkdir()
    (runs / "tasks" / "result.json").write_text(sealed(made("larosa", 0.4, tasks=seven(0.5))))
    fail(runs, LarosaError("no tokenizer"), cell("teal", 0.4, texts=[], tasks=["piqa"]))
    found = gathered(tmp_path)
    assert at(block(found[1], "llama3-8b"), "40", "teal", "Acc7, %, ours").text == "failed"
    assert at(block(found[2], "llama3-8b"), "40", "teal", "WikiText-2 perplexity, ours").text == "missing"


def test_failures_are_merged_and_damage_is_named(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fail(runs, LarosaError("first"), cell("teal", 0.4))
    gathered(tmp_path)
    fail(runs, LarosaError("second"), cell("cats", 0.4))
    (runs / "teal-0.4" / "failed.json").unlink()
    gathered(tmp_path)
    path = tmp_path / "records" / "failed-mine.json"
    assert [own["message"] for own in failed.read(path)] == ["second", "first"]
    before = path.read_text()
    for content, why in (("{}", "no checksum"), (sealed({"label": "cats"}), "it lacks asked"), ("[", "not JSON")):
        (runs / "cats-0.4" / "failed.json").write_text(content)
        capsys.readouterr()
        assert compact.main([str(runs), str(tmp_path / "records" / "mine.jsonl")]) == 0
        told = capsys.readouterr().err
        assert "cats-0.4/failed.json is excluded" in told
        assert why.removeprefix("it ") in told
        assert path.read_text() == before
    changed = before.replace("second", "third")
    for content, message in (
        ("{}", "a list of failures"),
        (f"[{sealed({'label': 'teal'})}]", "make the file with"),
        (changed, "mine.json: its checksum"),
        ("[", "mine"),
    ):
        path.write_text(content)
        with pytest.raises(RecordsError, match=message):
            store.read(path.parent, tmp_path / "none")


def test_inspections_come_along(runs: Path, tmp_path: Path) -> None:
    (found,) = (own for name, own in diagnostics().items() if "surface" in name)
    mine = found | {"data": {"calibration": {"text": "mine", "tokens": 9, "files": [f"{tmp_path}/mine.txt"]}}}
    path, out = runs / "inspect-surface-smollm2-135m.json", tmp_path / "records" / "inspect-surface-smollm2-135m.json"
    path.write_text(sealed(mine))
    gathered(tmp_path)
    kept = json.loads(out.read_text())
    assert kept["values"] == found["values"]
    assert kept["data"]["calibration"]["files"] == ["mine.txt"]
    path.write_text(sealed(mine | {"created": "1999-01-01", "values": {}}))
    gathered(tmp_path)
    assert json.loads(out.read_text()) == kept  # the newer one stays
