"""Records of one setting as one run: perplexity and tasks are often measured apart, and a row shows both."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from larosa_analysis.records.entry import Entry, Record
from larosa_analysis.records.outcomes import Score
from larosa_analysis.records.run import Run


def merged(runs: list[Run]) -> list[Run]:
    """One run per label, schedule, target and calibration, with every text and task that one of them measured.

    No two of the runs may contradict each other. Of a text or task that several measured the first one's stands; a
    run that adds nothing is not among the result's `records`.
    """
    by_setting: dict[Hashable, list[Run]] = {}
    for run in runs:
        same = by_setting.setdefault(_setting(run), [])
        if not same or _held(run) - set().union(*map(_held, same)):
            same.append(run)
    return [_joined(same) for same in by_setting.values()]


def _setting(run: Run) -> Hashable:
    if run.entry.family == "dense":
        return run.entry.label
    calibration = run.entry.record["data"].get("calibration", {}).get("sha256")
    return run.entry.label, run.entry.schedule, run.entry.target, calibration


def _held(run: Run) -> set[tuple[str, str]]:
    """What a run measured."""
    return {("text", text) for text in run.entry.nll} | {("task", task) for task in run.scores}


def _joined(runs: list[Run]) -> Run:
    """The first run, with what the others add."""
    if len(runs) == 1:
        return runs[0]
    first = runs[0].entry.record
    scores: dict[str, Score] = {}
    metrics: dict[str, dict[str, Any]] = {"perplexity": {}, "achieved_sparsity": {}}
    texts: dict[str, Any] = {}
    for run in reversed(runs):
        scores |= run.scores
        texts |= run.entry.record["data"].get("texts", {})
        for name, by_text in metrics.items():
            by_text |= run.entry.record["metrics"][name]
    record: Record = first | {"metrics": first["metrics"] | metrics, "data": first["data"] | {"texts": texts}}
    return Run(Entry.of(record), scores, tuple(source for run in runs for source in run.records))
