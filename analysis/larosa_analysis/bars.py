"""The two bars that LaRoSA should pass, stated from the rows, and what searched schedules are worth.

(a) equal level: the best larosa row whose extras are at most one bf16 D x D a layer loses at most 0.70 of what
    magnitude Top-K loses, in the mean and on two thirds of the texts.
(b) equal net bytes: the best larosa row loses less than magnitude, in the mean and on two thirds of the texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from larosa_analysis.bootstrap import Estimate
from larosa_analysis.extras import adapter_share
from larosa_analysis.records import Entry
from larosa_analysis.rows import Row, Rows

FAMILY = "larosa"
RATIO_A = 0.70
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Verdict:
    """One bar at one target."""

    bar: Literal["a", "b"]
    target: float
    best: Row | None
    """The best larosa row that is allowed; None if there is none."""
    texts_passed: int
    holds: bool
    too_dear: Row | None
    """Bar (a): the best larosa row among those with larger extras."""


def verdicts(rows: Rows) -> list[Verdict]:
    """Both bars at every target."""
    found = []
    for target in rows.targets:
        at_level = [row for row in rows.standing(target, "level") if row.entry.family == FAMILY]
        within = [row for row in at_level if row.entry.extras <= adapter_share(row.entry.record) + _ROUNDING]
        dear = [row for row in at_level if row not in within]
        found.append(_verdict("a", target, within, dear))
        free = [row for row in at_level if not row.entry.extras]  # without extras, net bytes are the level
        net = [row for row in rows.standing(target, "net bytes") if row.entry.family == FAMILY]
        found.append(_verdict("b", target, net + free, []))
    return sorted(found, key=lambda verdict: (verdict.bar, verdict.target))


def _verdict(bar: Literal["a", "b"], target: float, allowed: list[Row], dear: list[Row]) -> Verdict:
    best = min(allowed, key=_mean, default=None)
    passed = [passes(bar, estimate.value) for estimate in best.compared.by_text.values()] if best else []
    holds = best is not None and passes(bar, _mean(best)) and 3 * sum(passed) >= 2 * len(passed)
    return Verdict(bar, target, best, sum(passed), holds, min(dear, key=_mean, default=None))


def passes(bar: Literal["a", "b"], ratio: float) -> bool:
    """Whether one ratio is small enough."""
    return ratio <= RATIO_A if bar == "a" else ratio < 1.0


def _mean(row: Row) -> float:
    return row.compared.mean.value


@dataclass(frozen=True)
class Gain:
    """What the best searched schedule spares a method at a target."""

    label: str
    target: float
    searched: Entry
    given: Entry
    """The better of uniform and official."""
    gain: Estimate
    """Fraction by which the increase is lower, mean over texts."""


def gains(rows: Rows) -> list[Gain]:
    """For every method and target with a schedule from a file and one of uniform and official, at equal level."""
    at_level = [row for row in rows.rows if row.count == "level" and row.status in ("stands", "other schedule")]
    found = []
    for (target, label), group in groupby(at_level, key=lambda row: (row.target, row.entry.label)):
        entries = [row.entry for row in group]
        searched = [e for e in entries if e.record["config"]["schedule"]["kind"] == "file"]
        given = [e for e in entries if e.schedule in ("uniform", "official")]
        if searched and given:
            best, other = (min(those, key=rows.increases.mean) for those in (searched, given))
            found.append(Gain(label, target, best, other, rows.increases.ratio(best, other).mean.gain()))
    return found
