"""Methods on several models side by side: seeds pooled, uncalibrated records shared, intervals over both."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Any

import pytest
from made_records import Record, made, write

from larosa_analysis.comparison import models
from larosa_analysis.records.entry import RecordsError, read_lines, reads_calibration

LAROSA = "larosa/paper (absorbed, pca, per layer)"
DENSE, MAGNITUDE = 2.0, 2.2


def larosa(nats: float, seed: int, **more: Any) -> Record:
    record = made("larosa", nats=nats, **more)
    record["config"]["seed"] = seed
    record["data"]["calibration"]["sha256"] += str(seed)
    record["identity"] += f"-{seed}"
    return record


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    runs = []
    for model in ("llama3-8b", "qwen2.5-7b"):
        runs += [made("dense", 0.0, nats=DENSE, model=model), made("magnitude", nats=MAGNITUDE, model=model)]
        runs += [larosa(2.1, 0, model=model), larosa(2.15, 1, model=model)]
    runs.append(larosa(2.3, 0, model="llama3-8b", calibration="code"))
    return write(tmp_path, runs) / "runs.jsonl"


def ratio(nats: float) -> float:
    """Of perplexity increases; the noise of the blocks is the same for all and drops out."""
    return (exp(nats - DENSE) - 1) / (exp(MAGNITUDE - DENSE) - 1)


def test_seeds_are_pooled_and_calibrations_kept_apart(lines: Path) -> None:
    found = models.groups([lines])
    assert {(c.model, c.calibration, c.seed) for c in found} == {
        ("llama3-8b", "wikitext2", 0), ("llama3-8b", "wikitext2", 1), ("llama3-8b", "code", 0),
        ("qwen2.5-7b", "wikitext2", 0), ("qwen2.5-7b", "wikitext2", 1),
    }  # fmt: skip
    own = models.pooled(found, "llama3-8b", "wikitext2", 0.5, "weight sparsity")
    assert own[LAROSA].mean.value == pytest.approx((ratio(2.1) + ratio(2.15)) / 2, rel=1e-6)
    assert own["magnitude"].mean.value == pytest.approx(1)
    one_seed = models.pooled(found, "llama3-8b", "code", 0.5, "weight sparsity")[LAROSA]
    assert one_seed.mean.value == pytest.approx(ratio(2.3), rel=1e-6)
    low, high = own[LAROSA].mean.low, own[LAROSA].mean.high
    assert low is not None
    assert high is not None
    assert low <= ratio(2.1) * 1.001  # both seeds lie in the interval
    assert high >= ratio(2.15) * 0.999


def test_the_table_has_a_column_per_model_and_target(lines: Path) -> None:
    text = models.table(models.groups([lines]), "wikitext2", [0.5], "weight sparsity")
    head, _, first, second = text.splitlines()
    assert head == ("| method | llama3-8b overhead, % | qwen2.5-7b overhead, % | llama3-8b, 50 % | qwen2.5-7b, 50 % |")
    assert first.startswith("| larosa/paper | 0.00 | 0.00 | 0.60 [0.")
    assert second.startswith("| magnitude | 0.00 | 0.00 | 1.00 [1.00, 1.00] |")


def test_overhead_moves_a_method_at_equal_bytes(tmp_path: Path) -> None:
    base = [made("dense", 0.0, nats=DENSE), made("magnitude", nats=MAGNITUDE)]
    level, paid = larosa(2.1, 0), larosa(2.18, 0, level=0.55)
    for record in (level, paid):
        record["metrics"]["accounting"]["overhead_fraction"] = 0.05
    found = models.groups([write(tmp_path, [*base, level, paid]) / "runs.jsonl"])
    at = {m: models.pooled(found, "llama3-8b", "wikitext2", 0.5, m)[LAROSA].mean.value for m in models.METRICS}
    assert at == pytest.approx({"weight sparsity": ratio(2.1), "bytes read": ratio(2.18)}, rel=1e-6)


def test_what_is_missing_is_named(lines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main([str(lines), "--calibration", "poems"]) == 2
    assert "no record is calibrated on 'poems'; there is code, wikitext2" in capsys.readouterr().err
    with pytest.raises(RecordsError, match="llama3-8b: no dense record"):
        models.groups([write(tmp_path / "bare", [larosa(2.1, 0)]) / "runs.jsonl"])


def test_which_records_read_the_calibration(lines: Path) -> None:
    read = {(r["label"], reads_calibration(r["config"])) for r in read_lines(lines)}
    assert read == {("dense", False), ("magnitude", False), (LAROSA, True)}
    searched = made("magnitude")
    searched["config"]["schedule"]["kind"] = "file"
    thresholds = made("magnitude")
    thresholds["config"]["method"]["selector"] = "threshold"
    assert reads_calibration(searched["config"])
    assert reads_calibration(thresholds["config"])
