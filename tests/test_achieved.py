"""Achieved sparsity by text, from the committed records."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_records import sealed

from conftest import ROOT
from larosa_analysis.comparison import achieved

RECORDS = ROOT / "analysis" / "records" / "methods-smollm2.jsonl"


def test_top_k_is_constant_and_thresholds_are_not() -> None:
    cells = {(c.method, c.text): c for c in achieved.read([RECORDS]) if c.target == 0.5}
    for text in ("gsm8k", "hellaswag", "lambada"):
        top_k, thresholds = cells["magnitude", text], cells["teal", text]
        assert top_k.deviation == 0.0
        assert top_k.least == top_k.most == top_k.mean == pytest.approx(0.5, abs=2e-3)
        assert (
            thresholds.least
            < thresholds.mean - thresholds.deviation
            < thresholds.mean + thresholds.deviation
            < thresholds.most
        )
        assert thresholds.tokens == 24576


def test_files_and_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(RECORDS), "--methods", "magnitude,teal", "--out", str(tmp_path)]
    assert achieved.main(words) == 0
    assert capsys.readouterr().out.count("| teal |") == 1
    assert (tmp_path / "achieved.png").stat().st_size > 5_000
    lines = (tmp_path / "achieved.csv").read_text().splitlines()
    assert lines[0].startswith("method,selector,target,text,mean")
    assert {line.split(",")[0] for line in lines[1:]} == {"magnitude", "teal"}
    assert achieved.main([*words, "--target", "0.33"]) == 2
    assert "no record has the target 0.33" in capsys.readouterr().err
    empty = tmp_path / "none.jsonl"
    empty.write_text(sealed({"metrics": {}}) + "\n")
    assert achieved.main([str(empty)]) == 2


def test_the_committed_numbers_are_the_records() -> None:
    committed = (ROOT / "analysis" / "achieved.csv").read_text()
    assert committed == achieved.csv_text(achieved.read([RECORDS]))
