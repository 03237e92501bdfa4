"""How long a run takes is said beforehand: the passes that are counted, their time, and the line."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_config import parse

from larosa import models
from larosa.errors import LarosaError
from larosa.experiment import estimate, pipeline
from larosa.experiment.estimate import Work, describe, measured_rates, seconds, work_of
from larosa.experiment.plan_runs import plan_runs
from larosa.models.sites import ModelShape

TINY = ["model=tiny-llama", "tracking=off", "evaluation.zero_shot.tasks=[piqa,arc_easy]"]
SIZES = ["calibration.sequences=4", "calibration.length=128", "calibration.probe_sequences=2"]


def work(*words: str) -> Work:
    return work_of(plan_runs(parse(*TINY, *SIZES, *words)).values())


def test_every_planned_pass_is_counted() -> None:
    found = work("evaluation.perplexity.max_tokens=2048", "evaluation.zero_shot.examples=10", "texts=[lambada,gsm8k]")
    tasks = 10 * (60 + 85)
    assert found == Work(
        runs=3, calibration=512, probed=2 * 256, perplexity=3 * 2 * 2048, tasks=3 * tasks,
        sparse=2 * (2 * 2048 + tasks), checked=4 * 128, rotated=1, uncounted=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("evaluation.perplexity.max_tokens=null", "whole texts"),
        ("evaluation.zero_shot.examples=null", "piqa"),
        ("evaluation.zero_shot.tasks=[gsm8k_cot]", "gsm8k_cot"),
        ("quantization=w8", "quantisation"),
        ("method=larosa/learned", "tuning"),
    ],
)
def test_what_is_not_counted_is_named(word: str, named: str) -> None:
    found = work(word)
    assert named in found.uncounted
    assert named in describe(found, 100.0, 0, "cpu")


def test_seconds_of_a_shape_by_hand() -> None:
    shape = ModelShape.of(models.model_config(parse("model=tiny-llama").model))
    # tiny-llama: 3 layers of D 64, kv width 32, I 160, vocabulary 384
    weights = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160)
    none = Work(1, 0, 0, 0, 0, 0, 0, 0, ())
    dense = replace(none, perplexity=1000)
    flops = 1000 * 2 * (weights + 64 * 384)
    assert seconds(dense, shape, 384, 1e6, 1e9) == pytest.approx(estimate.OVERHEAD * flops / 1e6)
    sparse = replace(dense, sparse=1000)
    ranked = 1000 * 3 * (64 + 64 + 64 + 160)
    assert seconds(sparse, shape, 384, 1e6, 1e3) - seconds(dense, shape, 384, 1e6, 1e3) == pytest.approx(ranked / 1e3)
    calibrated = replace(none, calibration=1000)
    expected = estimate.OVERHEAD * 1000 * 2 * (weights + 3 * 2 * 64 * 64) / 1e6
    assert seconds(calibrated, shape, 384, 1e6, 1e9) == pytest.approx(expected)
    checked = replace(none, checked=1000)
    assert seconds(checked, shape, 384, 1e6, 1e9) == seconds(dense, shape, 384, 1e6, 1e9)
    rotated = estimate.OVERHEAD * 2 * (2 * 64 * weights + 3 * 10 * 64**3) / 1e6
    assert seconds(replace(none, rotated=1), shape, 384, 1e6, 1e9) == pytest.approx(rotated)


def test_rates_are_those_of_this_machine() -> None:
    shape = ModelShape.of(models.model_config(parse("model=llama2-7b").model))
    flops, ranked = measured_rates(shape, torch.device("cpu"), torch.float32)
    assert 1e8 < flops < 1e15
    assert 1e5 < ranked < 1e13


@pytest.mark.parametrize(
    ("needed", "said"),
    [(4.0, "about 10 seconds"), (64.0, "about 60 seconds"), (700.0, "about 12 minutes"), (9000.0, "about 2.5 hours")],
)
def test_the_line(needed: float, said: str) -> None:
    found = Work(3, 16384, 0, 24576, 0, 0, 512, 1, ())
    line = describe(found, needed, 477_610_024, "cpu")
    assert line == (
        f"{said} on this CPU: 3 runs, 16k calibration tokens, 25k perplexity tokens; 0.48 GB are downloaded and "
        "converted first"
    )


def announced(monkeypatch: pytest.MonkeyPatch, needed: float, missing: int) -> list[str]:
    """What a run says before it looks for the weights."""
    said: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    def stop(_: Any) -> None:
        raise LarosaError("the weights are next")

    monkeypatch.setattr(estimate, "seconds", lambda *_: needed)
    monkeypatch.setattr(models, "missing_bytes", lambda _: missing)
    monkeypatch.setattr(pipeline, "require_measurable", stop)
    handler, logger = Kept(), logging.getLogger("larosa.experiment.estimate")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(LarosaError, match="the weights are next"):
            pipeline.run(parse(*TINY, *SIZES, "output=/nowhere", "figures=null"))
    finally:
        logger.removeHandler(handler)
    return said


def test_a_long_run_says_so_before_weights_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = announced(monkeypatch, 720.0, 0)
    assert line.startswith("about 12 minutes on this CPU: 3 runs")


def test_a_download_is_named_and_a_run_of_seconds_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert announced(monkeypatch, 1.0, 0) == []
    (line,) = announced(monkeypatch, 1.0, 5 * 10**8)
    assert line.endswith("0.50 GB are downloaded and converted first")


def test_missing_bytes_are_those_of_models_in_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path))
    assert models.missing_bytes(parse("model=qwen2.5-coder-0.5b").model) == 477_610_024
    assert models.missing_bytes(parse("model=qwen2.5-coder-0.5b", "model.source=random").model) == 0
    assert models.missing_bytes(parse("model=llama2-7b").model) == 0
