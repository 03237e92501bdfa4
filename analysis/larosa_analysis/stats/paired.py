"""Whether two records differ by more than chance, paired example by example or block by block, at 5 %.

accuracy of one task   McNemar's exact test: of the examples that only one of both got right, how uneven are the sides
mean over tasks        paired bootstrap over examples, tasks drawn apart
perplexity             paired t test over evaluation blocks, of their nats; a bootstrap of few blocks finds too much
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from scipy.stats import t as student

from larosa_analysis.records.entry import Entry
from larosa_analysis.records.outcomes import Score
from larosa_analysis.stats.bootstrap import RESAMPLES, SEED

LEVEL = 0.05


def accuracies_differ(one: list[Score], other: list[Score]) -> bool | None:
    """Of the same tasks in the same order; None where the records do not hold the same examples."""
    pairs = list(zip(one, other, strict=True))
    if any(not len(a.ids) or not np.array_equal(a.ids, b.ids) for a, b in pairs):
        return None
    differences = [a.correct.astype(np.int64) - b.correct for a, b in pairs]
    if len(differences) == 1:
        return mcnemar(differences[0]) < LEVEL
    low, high = _interval(differences, pairs)
    return bool(low > 0 or high < 0)


def mcnemar(difference: NDArray[np.int64]) -> float:
    """Two-sided p of outcomes that differ; 1 where none does. difference: [examples] of -1, 0, 1."""
    won, lost = int((difference > 0).sum()), int((difference < 0).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def _interval(differences: list[NDArray[np.int64]], pairs: list[tuple[Score, Score]]) -> tuple[float, float]:
    """95 % interval of the mean over tasks: drawing examples is drawing how many of each difference there are."""
    means = np.zeros(RESAMPLES)
    for difference, (score, _) in zip(differences, pairs, strict=True):
        generator = np.random.default_rng([SEED, zlib.crc32(score.task.encode())])
        count = len(difference)
        share = [(difference == value).mean() for value in (-1, 0, 1)]
        drawn = generator.multinomial(count, share, size=RESAMPLES)
        means += (drawn[:, 2] - drawn[:, 0]) / count / len(differences)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def perplexities_differ(one: Entry, other: Entry, text: str) -> bool | None:
    """On one text; None for fewer than two blocks or blocks that are not the same."""
    a, b = one.nll[text], other.nll[text]
    if len(a) != len(b) or len(a) < 2:
        return None
    return paired_t(a - b) < LEVEL


def paired_t(difference: NDArray[np.float64]) -> float:
    """Two-sided p of a mean that differs from 0. difference: [blocks], at least two."""
    mean, error = abs(float(difference.mean())), float(difference.std(ddof=1)) / len(difference) ** 0.5
    if not error:
        return 0.0 if mean else 1.0
    return float(2 * student.sf(mean / error, len(difference) - 1))
