"""Rows: one record at one target under one metric, beside magnitude Top-K at that target.

metric = weight sparsity  saved = achieved weight sparsity, mean over texts
metric = bytes read       saved = achieved weight sparsity - overhead, both in bytes of the seven projections

A record counts at a target if what it saves is within the tolerance of it; one that was meant for the target and
misses it is listed as such and never counts. Of one method and schedule the record nearest to the target counts; of
its schedules the one with the smallest increase, mean over texts, represents the method.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from larosa.commands import typed
from larosa_analysis.records.entry import Entry, RecordsError
from larosa_analysis.stats.bootstrap import Increases, Ratio

Metric = Literal["weight sparsity", "bytes read"]
Status = Literal["counts", "other schedule", "further from the target", "off target"]
REFERENCE = "magnitude"
TOLERANCE = 0.005
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Row:
    """One record at one target; sparsities are fractions."""

    entry: Entry
    target: float
    metric: Metric
    status: Status
    schedules: int
    """Schedules of the method at this target, of which the best counts."""
    ratio: Ratio | None
    """To magnitude's increase at the target; None where the record does not count."""

    @property
    def compared(self) -> Ratio:
        """The ratio of a row that counts. Raises RecordsError for one that does not."""
        if self.ratio is None:
            raise RecordsError(f"{self.entry.name} does not count at {100 * self.target:g} %: {self.status}")
        return self.ratio

    @property
    def saved(self) -> float:
        """What the record saves by the metric, mean over texts."""
        return self.entry.weight_sparsity - _paid(self.entry, self.metric)


@dataclass(frozen=True)
class Rows:
    """All rows of all targets, and what they are compared with."""

    texts: list[str]
    targets: list[float]
    tolerance: float
    dense: Entry
    reference: dict[float, Entry]
    rows: list[Row]
    increases: Increases
    entries: list[Entry]

    def standing(self, target: float, metric: Metric) -> list[Row]:
        """The rows that count, best first, magnitude itself before all."""
        standing = [r for r in self.rows if (r.target, r.metric, r.status) == (target, metric, "counts")]
        return sorted(standing, key=lambda r: (r.entry.label != REFERENCE, r.compared.mean.value, r.entry.label))

    @property
    def unplaced(self) -> list[Entry]:
        """Sparse records that were meant for no target of the table."""
        placed = {row.entry.identity for row in self.rows} | {self.dense.identity}
        return [entry for entry in self.entries if entry.identity not in placed]


def build(entries: list[Entry], texts: list[str], targets: list[float] | None, tolerance: float = TOLERANCE) -> Rows:
    """The rows of comparable entries. Default targets: those of the magnitude Top-K records.

    Raises RecordsError with the command that makes a missing dense or magnitude record.
    """
    dense = next((entry for entry in entries if entry.family == "dense"), None)
    if dense is None:
        raise RecordsError(f"no dense record. Make it: {command(entries[0], 'dense', 0.0)}")
    sparse = [entry for entry in entries if entry is not dense]
    reference_entries = [entry for entry in sparse if entry.label == REFERENCE]
    targets = sorted(set(targets if targets is not None else [entry.target for entry in reference_entries]))
    like = (sparse or [dense])[0]
    if not targets:
        raise RecordsError(f"no {REFERENCE} record. Make it: {command(like, REFERENCE, like.target)}")
    increases = Increases(dense, texts)
    reference: dict[float, Entry] = {}
    rows: list[Row] = []
    for target in targets:
        near = _nearest(reference_entries, target, "weight sparsity", tolerance)
        if not near:
            raise RecordsError(
                f"no {REFERENCE} record at {100 * target:g} %, to which the others are compared. Make it: "
                f"{command(like, REFERENCE, target)}"
            )
        reference[target] = min(near, key=increases.mean)
        for _, group in groupby(sparse, key=lambda e: e.label):
            same = list(group)
            rows += _rows(same, target, "weight sparsity", tolerance, increases, reference[target])
            paid = [entry for entry in same if entry.overhead]  # without overhead both metrics are one
            rows += _rows(paid, target, "bytes read", tolerance, increases, reference[target])
    return Rows(texts, targets, tolerance, dense, reference, rows, increases, entries)


def _rows(
    same: list[Entry], target: float, metric: Metric, tolerance: float, increases: Increases, reference: Entry
) -> Iterator[Row]:
    """The rows of one method's entries."""
    near = _nearest(same, target, metric, tolerance)
    best = min(near, key=increases.mean, default=None)
    for entry in same:
        if _off(entry, target, metric) <= tolerance:
            status: Status = "further from the target"
            if entry in near:
                status = "counts" if entry is best else "other schedule"
            yield Row(entry, target, metric, status, len(near), increases.ratio(entry, reference))
        elif abs(entry.target - _paid(entry, metric) - target) <= tolerance + _ROUNDING:
            yield Row(entry, target, metric, "off target", len(near), None)


def _paid(entry: Entry, metric: Metric) -> float:
    return entry.overhead if metric == "bytes read" else 0.0


def _off(entry: Entry, target: float, metric: Metric) -> float:
    """How far from the target the entry saves; less than rounding is nothing."""
    return max(0.0, abs(entry.weight_sparsity - _paid(entry, metric) - target) - _ROUNDING)


def _nearest(same: list[Entry], target: float, metric: Metric, tolerance: float) -> list[Entry]:
    """Of every schedule the entry that saves the target most nearly, within the tolerance."""
    by_schedule: dict[str, Entry] = {}
    for entry in sorted(same, key=lambda e: (_off(e, target, metric), e.target, e.identity)):
        if _off(entry, target, metric) <= tolerance:
            by_schedule.setdefault(entry.schedule, entry)
    return list(by_schedule.values())


def command(like: Entry, method: str, level: float) -> str:
    """The command that measures `method` at `level` under the conditions of another record."""
    config = like.record["config"]
    calibration, tokens, size = config["calibration"], config["token_policy"], config["evaluation"]["perplexity"]
    given = {
        "model": config["model"]["name"],
        "model.dtype": config["model"]["dtype"],
        "method": method,
        "baseline": "none",
        "sparsity": f"{level:g}",
        "seed": config["seed"],
        "token_policy": tokens["kind"],
        "calibration": calibration["text"]["name"],
        "calibration.sequences": calibration["sequences"],
        "calibration.length": calibration["length"],
        "texts": f"[{','.join(config['texts'])}]",
        "evaluation.perplexity.length": size["length"],
        "evaluation.perplexity.max_tokens": "null" if size["max_tokens"] is None else size["max_tokens"],
        "evaluation.zero_shot.tasks": f"[{','.join(config['evaluation']['zero_shot']['tasks'])}]",
    }
    given |= {"token_policy.n": tokens["n"]} if tokens["kind"] == "skip_first_n" else {}
    given |= {"token_policy.fraction": tokens["fraction"]} if tokens["kind"] == "last_fraction" else {}
    named = {f"texts.{name}": text for name, text in config["texts"].items()}
    for place, text in ({"calibration.text": calibration["text"]} | named).items():
        given |= {f"{place}.files": f"[{','.join(text['files'])}]"} if text["files"] else {}
        given |= {f"{place}.max_documents": text["max_documents"]} if text["max_documents"] else {}
    return f"{typed('run')} " + shlex.join(f"{key}={value}" for key, value in given.items())
