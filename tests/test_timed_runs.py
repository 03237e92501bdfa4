"""Runs with evaluation=speed in Table 3: every speed-up over the dense decoder of its own process."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from made_records import made, sealed, timings
from test_paper_tables import block, rows_of, tables

from conftest import CONF
from larosa_analysis.records import timings as records_timings
from larosa_analysis.records.entry import RecordsError

KERNELS = {"backend": "triton", "caveat": None}


def test_timed_runs_stand_in_table_3(tmp_path: Path) -> None:
    runs = [made("larosa", level, texts=()) for level in (0.25, 0.5)]
    for run, level in zip(runs, ("25", "50"), strict=True):
        rows = [row for row in timings((128,))["rows"] if row["kind"] == "dense" or row["name"] == f"top-k {level} %"]
        own = [row if row["kind"] == "dense" else row | {"name": "larosa/paper"} for row in rows]
        run["metrics"]["speed"] = {"backend": "triton", "parity": {"level 0": {}}, "rows": own, "summary": {}}
    table = tables(tmp_path, [*runs, made("dense", 0.0)])[3]
    found = block(table, "llama3-8b")
    ours = [own for own in rows_of(found) if own["source"].text == "ours"]
    assert [own["sparsity, %"].text for own in ours] == ["0", "25", "0", "50"]  # each with the dense one of its process
    assert [own["speed-up"].shown for own in ours] == ["1.00", "1.17", "1.00", "1.50"]
    assert ours[1]["method"].text.startswith("larosa/paper")
    assert not found.folded


def test_a_speed_up_is_over_the_dense_decoder_of_its_own_run(tmp_path: Path) -> None:
    runs = []
    for level, slower, schedule in (("25", 1.0, "uniform"), ("50", 2.0, "uniform"), ("50", 3.0, "official")):
        run = made("larosa", float(level) / 100, texts=())
        rows = [row for row in timings((128,))["rows"] if row["kind"] == "dense" or row["name"] == f"top-k {level} %"]
        own = [row | {"tokens_per_s": row["tokens_per_s"] / slower} for row in rows]
        own = [row | {"ms_per_token": {"p50": slower * row["ms_per_token"]["p50"]}} for row in own]
        run["metrics"]["speed"] = {"parity": {"level 0": {}}, "rows": own}
        if schedule == "official":
            run["config"]["schedule"] |= yaml.safe_load((CONF / "schedule" / "official.yaml").read_text())
        runs.append(run | {"identity": f"{run['identity']} {schedule}"})
    shown = [own for own in rows_of(block(tables(tmp_path, runs)[3], "llama3-8b")) if own["source"].text == "ours"]
    assert len(shown) == 6
    for dense, sparse in zip(shown[::2], shown[1::2], strict=True):
        assert dense["tokens/s"].value is not None
        assert sparse["tokens/s"].value is not None
        assert sparse["tokens/s"].value / dense["tokens/s"].value == pytest.approx(sparse["speed-up"].value, abs=1e-3)
    assert len({own["method"].text for own in shown[1::2]}) == 2  # the schedule tells two of one level apart


@pytest.mark.parametrize("told", [{"caveat": "torch reference on CPU, not a speed measurement"}, {}])
def test_times_that_are_no_speed_stand_in_no_table(told: dict[str, str], tmp_path: Path) -> None:
    run = made("larosa", 0.5, texts=())
    rows = [row for row in timings((32, 128))["rows"] if row["kind"] == "dense" or row["name"] == "top-k 50 %"]
    own = [row if row["kind"] == "dense" else row | {"name": "larosa/paper"} for row in rows]
    run["metrics"]["speed"] = {"backend": "reference", "parity": {"level 0": {}}, "rows": own, "summary": {}} | told
    assert records_timings.of_runs([run]) == []
    assert (
        len(
            records_timings.of_runs(
                [{**run, "metrics": {**run["metrics"], "speed": run["metrics"]["speed"] | KERNELS}}]
            )
        )
        == 1
    )
    found = block(tables(tmp_path, [run, made("dense", 0.0)])[3], "llama3-8b")
    assert [own["source"].text for own in rows_of(found) if own["source"].text == "ours"] == []


@pytest.mark.parametrize("changes", [{"device": "cpu, x86_64"}, {"backend": "reference"}])
def test_a_benchmark_without_a_gpu_is_refused(changes: dict[str, str], tmp_path: Path) -> None:
    record = timings()
    record["rows"] = [
        row | {key: value for key, value in changes.items() if key == "backend"} for row in record["rows"]
    ]
    path = tmp_path / "decode-x.json"
    path.write_text(sealed(record | {key: value for key, value in changes.items() if key == "device"}))
    with pytest.raises(RecordsError, match="no speed measurement"):
        records_timings.read([path])
