"""Rows: one record at one target under one count, beside magnitude Top-K at that target.

count = level      saved = realised byte-weighted level, mean over texts
count = net bytes  saved = realised byte-weighted level - extras / bytes of the seven projections

A record stands at a target if what it saves is within the tolerance of it; one that was meant for the target and
misses it is listed as such and never counts. Of one method and schedule the record nearest to the target counts; of
its schedules the one with the smallest increase, mean over texts, stands for the method.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from larosa_analysis.bootstrap import Increases, Ratio
from larosa_analysis.records import Entry, RecordsError

Count = Literal["level", "net bytes"]
Status = Literal["stands", "other schedule", "further from the target", "not at this level"]
REFERENCE = "magnitude"
TOLERANCE = 0.005
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Row:
    """One record at one target; levels and shares are fractions."""

    entry: Entry
    target: float
    count: Count
    status: Status
    schedules: int
    """Schedules of the method at this target, of which the best stands."""
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
        """What the count says the record saves, mean over texts."""
        return self.entry.level - _paid(self.entry, self.count)


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

    def standing(self, target: float, count: Count) -> list[Row]:
        """The rows that count, best first, magnitude itself before all."""
        found = [r for r in self.rows if (r.target, r.count, r.status) == (target, count, "stands")]
        return sorted(found, key=lambda r: (r.entry.label != REFERENCE, r.compared.mean.value, r.entry.label))

    @property
    def unplaced(self) -> list[Entry]:
        """Sparse records that were meant for no target of the table."""
        placed = {row.entry.identity for row in self.rows} | {self.dense.identity}
        return [entry for entry in self.entries if entry.identity not in placed]


def build(entries: list[Entry], texts: list[str], targets: list[float] | None, tolerance: float = TOLERANCE) -> Rows:
    """The rows of comparable entries. Default targets: the levels that magnitude Top-K was asked for.

    Raises RecordsError with the command that makes a missing dense or magnitude record.
    """
    dense = next((entry for entry in entries if entry.family == "dense"), None)
    if dense is None:
        raise RecordsError(f"no dense record. Make it: {command(entries[0], 'dense', 0.0)}")
    sparse = [entry for entry in entries if entry is not dense]
    own = [entry for entry in sparse if entry.label == REFERENCE]
    targets = sorted(set(targets if targets is not None else [entry.asked for entry in own]))
    like = (sparse or [dense])[0]
    if not targets:
        raise RecordsError(f"no {REFERENCE} record. Make it: {command(like, REFERENCE, like.asked)}")
    increases = Increases(dense, texts)
    reference: dict[float, Entry] = {}
    rows: list[Row] = []
    for target in targets:
        near = _nearest(own, target, "level", tolerance)
        if not near:
            raise RecordsError(
                f"no {REFERENCE} record at {100 * target:g} %, to which the others are compared. Make it: "
                f"{command(like, REFERENCE, target)}"
            )
        reference[target] = min(near, key=increases.mean)
        for _, group in groupby(sparse, key=lambda e: e.label):
            same = list(group)
            rows += _rows(same, target, "level", tolerance, increases, reference[target])
            paid = [entry for entry in same if entry.extras]  # without extras, net bytes are the level
            rows += _rows(paid, target, "net bytes", tolerance, increases, reference[target])
    return Rows(texts, targets, tolerance, dense, reference, rows, increases, entries)


def _rows(
    same: list[Entry], target: float, count: Count, tolerance: float, increases: Increases, reference: Entry
) -> Iterator[Row]:
    """The rows of one method's entries."""
    near = _nearest(same, target, count, tolerance)
    best = min(near, key=increases.mean, default=None)
    for entry in same:
        if _off(entry, target, count) <= tolerance:
            status: Status = "further from the target"
            if entry in near:
                status = "stands" if entry is best else "other schedule"
            yield Row(entry, target, count, status, len(near), increases.ratio(entry, reference))
        elif abs(entry.asked - _paid(entry, count) - target) <= tolerance + _ROUNDING:
            yield Row(entry, target, count, "not at this level", len(near), None)


def _paid(entry: Entry, count: Count) -> float:
    return entry.extras if count == "net bytes" else 0.0


def _off(entry: Entry, target: float, count: Count) -> float:
    """How far from the target the entry saves; less than rounding is nothing."""
    return max(0.0, abs(entry.level - _paid(entry, count) - target) - _ROUNDING)


def _nearest(same: list[Entry], target: float, count: Count, tolerance: float) -> list[Entry]:
    """Of every schedule the entry that saves the target most nearly, within the tolerance."""
    found: dict[str, Entry] = {}
    for entry in sorted(same, key=lambda e: (_off(e, target, count), e.asked, e.identity)):
        if _off(entry, target, count) <= tolerance:
            found.setdefault(entry.schedule, entry)
    return list(found.values())


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
    return "python run.py " + shlex.join(f"{key}={value}" for key, value in given.items())
