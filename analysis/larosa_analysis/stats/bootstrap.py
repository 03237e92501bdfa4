"""Paired block bootstrap: how far a ratio of perplexity increases depends on which blocks were evaluated.

A block is a run of consecutive tokens, so of consecutive documents. One resample draws as many blocks of a text as it
has, with replacement, the same for dense, reference and method; perplexities, increases and their ratio are computed
again from the drawn blocks. The interval holds the middle 95 % of the resamples. It says nothing about what another
calibration, seed or choice of schedule would change.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from larosa_analysis.records.entry import Entry, RecordsError

Array = NDArray[np.float64]
RESAMPLES = 2000
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval; None where a resample leaves no ratio."""

    value: float
    low: float | None
    high: float | None

    def gain(self) -> Estimate:
        """1 - ratio."""
        return Estimate(1 - self.value, *(None if v is None else 1 - v for v in (self.high, self.low)))


@dataclass(frozen=True)
class Ratio:
    """Increase over a reference's increase."""

    by_text: dict[str, Estimate]
    mean: Estimate
    """Of the mean over texts."""


def draws(text: str, blocks: int, resamples: int = RESAMPLES) -> Array:
    """[1 + resamples, blocks]: how often each block counts, first as observed. Texts are drawn independently."""
    generator = np.random.default_rng([SEED, zlib.crc32(text.encode())])
    drawn = generator.multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples)
    return np.concatenate([np.ones((1, blocks)), drawn])


class Increases:
    """Increase in perplexity over the dense model, observed and in every resample."""

    def __init__(self, dense: Entry, texts: list[str]) -> None:
        self._texts = texts
        self._draws = {text: draws(text, len(dense.nll[text])) for text in texts}
        self._dense = {text: self._perplexity(dense, text) for text in texts}
        self._found: dict[str, dict[str, Array]] = {}

    def _perplexity(self, entry: Entry, text: str) -> Array:
        counts, nll = self._draws[text], entry.nll[text]
        return np.exp(counts @ nll / (len(nll) * entry.predicted[text]))

    def of(self, entry: Entry) -> dict[str, Array]:
        """Text -> [1 + resamples], the first observed."""
        if entry.identity not in self._found:
            self._found[entry.identity] = {t: self._perplexity(entry, t) - self._dense[t] for t in self._texts}
        return self._found[entry.identity]

    def observed(self, entry: Entry) -> dict[str, float]:
        """Text -> increase."""
        return {text: float(values[0]) for text, values in self.of(entry).items()}

    def mean(self, entry: Entry) -> float:
        """The increase, mean over texts."""
        return float(np.mean(list(self.observed(entry).values())))

    def ratio(self, entry: Entry, reference: Entry) -> Ratio:
        """Of the increases. Raises RecordsError where the reference loses nothing."""
        increase, other = self.of(entry), self.of(reference)
        gains = [text for text in self._texts if other[text][0] <= 0]
        if gains:
            raise RecordsError(
                f"{reference.name} does not lose against dense on {', '.join(gains)}: a ratio to it has no meaning; "
                "compare at a higher level, or leave the text out with --texts"
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = {text: increase[text] / other[text] for text in self._texts}
        sound = {text: bool((other[text] > 0).all()) for text in self._texts}
        mean = np.mean(list(ratios.values()), axis=0)
        return Ratio({t: estimate(ratios[t], sound[t]) for t in self._texts}, estimate(mean, all(sound.values())))


def estimate(values: Array, sound: bool) -> Estimate:
    """values: [1 + resamples], the first observed; without an interval where a resample is not `sound`."""
    if not sound:
        return Estimate(float(values[0]), None, None)
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return Estimate(float(values[0]), float(low), float(high))
