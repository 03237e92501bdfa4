"""The speed table: ratios from the records, refusals, the files it writes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from made_records import sealed

from conftest import ROOT
from larosa.records import checksum
from larosa_analysis.records.entry import RecordsError
from larosa_analysis.records.timings import read
from larosa_analysis.speed.__main__ import main
from larosa_analysis.speed.rows import speed_rows

RECORD = ROOT / "kernels" / "benchmarks" / "records" / "decode-llama2-7b-h100-2026-11-23.json"


@pytest.fixture
def record() -> dict[str, Any]:
    found: dict[str, Any] = checksum.read(RECORD)
    return found


def test_speedups_are_over_the_fastest_dense_row(record: dict[str, Any]) -> None:
    fastest = min(row["ms_per_token"]["p50"] for row in record["rows"] if row["kind"] == "dense")
    found = speed_rows([record])
    assert {cell.selector for cell in found} == {"top-k", "thresholds"}
    for cell in found:
        assert cell.speedup == pytest.approx(fastest / cell.ms)
        assert cell.speedup <= cell.ideal * 1.01
        assert cell.tokens_per_s == pytest.approx(1000 / cell.ms)


def test_a_record_without_a_parity_check_is_refused(record: dict[str, Any], tmp_path: Path) -> None:
    for change, message in (({"kind": "other"}, "expected a record"), ({"parity": {}}, "without a parity check")):
        path = tmp_path / "record.json"
        path.write_text(sealed(record | change))
        with pytest.raises(RecordsError, match=message):
            read([path])
        assert main([str(path)]) == 2
    for content in (sealed(record).replace('"speedup": 1', '"speedup": 2', 1), "[]", "null", sealed(record)[:-9]):
        path.write_text(content)
        with pytest.raises(RecordsError, match=r"record\.json: "):
            read([path])


def test_table_and_figure(record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = copy.deepcopy(record) | {"overhead": "adapter"}
    other["rows"] = [row for row in other["rows"] if "75" not in row["name"]]
    path = tmp_path / "other.json"
    path.write_text(sealed(other))
    assert main([str(RECORD), str(path), "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "one bf16 adapter per layer, Top-K" in text
    assert "| - |" in text
    assert "one exact selection costs" in text
    assert (tmp_path / "speed.png").stat().st_size > 10_000
    assert len((tmp_path / "speed.csv").read_text().splitlines()) == 1 + len(speed_rows([record, other]))
