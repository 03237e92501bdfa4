"""The two acceptance criteria of LaRoSA, decided from the rows, and what searched schedules are worth.

(a) equal weight sparsity: the best larosa row whose overhead is at most one bf16 D x D per layer loses at most 0.70 of
    what magnitude Top-K loses, in the mean and on two thirds of the texts.
(b) equal bytes read: the best larosa row loses less than magnitude, in the mean and on two thirds of the texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from larosa_analysis.comparison.overhead import adapter_fraction
from larosa_analysis.comparison.rows import Row, Rows
from larosa_analysis.records.entry import Entry
from larosa_analysis.stats.bootstrap import Estimate

FAMILY = "larosa"
RATIO_A = 0.70
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Verdict:
    """One criterion at one target."""

    criterion: Literal["a", "b"]
    target: float
    best: Row | None
    """The best larosa row that is allowed; None if there is none."""
    texts_passed: int
    met: bool
    over_budget: Row | None
    """Criterion (a): the best larosa row among those with larger overhead."""


def verdicts(rows: Rows) -> list[Verdict]:
    """Both criteria at every target."""
    all_verdicts = []
    for target in rows.targets:
        at_level = [row for row in rows.standing(target, "weight sparsity") if row.entry.family == FAMILY]
        within = [row for row in at_level if row.entry.overhead <= adapter_fraction(row.entry.record) + _ROUNDING]
        all_verdicts.append(_verdict("a", target, within, [row for row in at_level if row not in within]))
        free = [row for row in at_level if not row.entry.overhead]  # without overhead both metrics are one
        net = [row for row in rows.standing(target, "bytes read") if row.entry.family == FAMILY]
        all_verdicts.append(_verdict("b", target, net + free, []))
    return sorted(all_verdicts, key=lambda verdict: (verdict.criterion, verdict.target))


def _verdict(criterion: Literal["a", "b"], target: float, allowed: list[Row], over_budget: list[Row]) -> Verdict:
    best = min(allowed, key=_mean, default=None)
    passed = [passes(criterion, estimate.value) for estimate in best.compared.by_text.values()] if best else []
    met = best is not None and passes(criterion, _mean(best)) and 3 * sum(passed) >= 2 * len(passed)
    return Verdict(criterion, target, best, sum(passed), met, min(over_budget, key=_mean, default=None))


def passes(criterion: Literal["a", "b"], ratio: float) -> bool:
    """Whether one ratio is small enough."""
    return ratio <= RATIO_A if criterion == "a" else ratio < 1.0


def _mean(row: Row) -> float:
    return row.compared.mean.value


@dataclass(frozen=True)
class Gain:
    """By how much the best searched schedule lowers the increase of a method at a target."""

    label: str
    target: float
    searched: Entry
    given: Entry
    """The better of uniform and official."""
    gain: Estimate
    """Fraction by which the increase is lower, mean over texts."""


def gains(rows: Rows) -> list[Gain]:
    """For each method and target with a schedule from a file and one of uniform and official, at equal sparsity."""
    at_level = [
        row for row in rows.rows if row.metric == "weight sparsity" and row.status in ("counts", "other schedule")
    ]
    all_gains = []
    for (target, label), group in groupby(at_level, key=lambda row: (row.target, row.entry.label)):
        entries = [row.entry for row in group]
        searched = [e for e in entries if e.record["config"]["schedule"]["kind"] == "file"]
        given = [e for e in entries if e.schedule in ("uniform", "official")]
        if searched and given:
            best, other = (min(those, key=rows.increases.mean) for those in (searched, given))
            all_gains.append(Gain(label, target, best, other, rows.increases.ratio(best, other).mean.gain()))
    return all_gains
