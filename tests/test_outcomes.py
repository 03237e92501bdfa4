"""Outcomes of examples: packed, unpacked, paired; and the tests that tell methods apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from larosa_analysis.records.entry import RecordsError
from larosa_analysis.records.outcomes import Score, compact_score, pack, unpack
from larosa_analysis.stats.paired import accuracies_differ, mcnemar, paired_t


def found(correct: list[int], ids: list[int] | None = None, task: str = "piqa") -> dict[str, Any]:
    """A score as a run records it."""
    return {
        "task": task, "metric": "acc", "value": sum(correct) / len(correct), "standard_error": 0.1,
        "examples": len(correct), "num_available": 1000, "split": "validation", "source": "made up",
        "document_ids": ids or list(range(len(correct))), "correct": [float(c) for c in correct],
    }  # fmt: skip


def score(correct: list[int], ids: list[int] | None = None, task: str = "piqa") -> Score:
    return Score.of(compact_score(found(correct, ids, task)))


@given(st.lists(st.integers(0, 10**6)))
def test_numbers_come_back(ids: list[int]) -> None:
    assert unpack(pack(ids)).tolist() == ids


def test_runs_of_examples_are_short() -> None:
    assert pack([0, 1, 2, 3, 7]) == "0,1x3,4"
    assert pack(list(range(10042))) == "0,1x10041"
    with pytest.raises(RecordsError, match="must read like"):
        unpack("0,a")


def test_a_compact_score_is_itself_and_keeps_what_it_says() -> None:
    once = compact_score(found([1, 0, 1], [5, 7, 9]) | {"excluded": 4})
    assert compact_score(once) == once
    assert (once["correct"], once["document_ids"], once["excluded"]) == ("101", "5,2x2", 4)
    assert score([1, 0, 1], [5, 7, 9]).correct.tolist() == [1, 0, 1]
    with pytest.raises(RecordsError, match="0 or 1"):
        compact_score(found([1, 0]) | {"correct": [1.0, 0.5]})
    with pytest.raises(RecordsError, match="3 example numbers, but 2 outcomes"):
        Score.of(once | {"correct": "10"})


def test_restricted_to_common_examples() -> None:
    part = score([1, 0, 1, 1], [2, 4, 6, 8]).on(np.array([4, 8]))
    assert (part.value, part.examples, part.correct.tolist()) == (0.5, 2, [0, 1])
    with pytest.raises(RecordsError, match="example 3 was not scored"):
        score([1, 0], [2, 4]).on(np.array([3]))


def test_mcnemar_is_the_binomial_of_what_differs() -> None:
    assert mcnemar(np.array([1] * 5 + [0] * 90)) == pytest.approx(2 * 0.5**5)
    assert mcnemar(np.array([1, -1, 0])) == 1.0
    assert mcnemar(np.zeros(4, dtype=np.int64)) == 1.0


def test_differences_need_the_same_examples_and_more_than_chance() -> None:
    better, worse = [1] * 40 + [0] * 60, [1] * 20 + [0] * 80
    assert accuracies_differ([score(better)], [score(worse)])
    assert not accuracies_differ([score(better)], [score([*better[:-1], 1])])
    assert accuracies_differ([score(better)], [score(worse, list(range(1, 101)))]) is None
    assert accuracies_differ([replace(score(better), ids=np.array([], dtype=np.int64))], [score(worse)]) is None


def test_the_mean_over_tasks_is_bootstrapped() -> None:
    tasks = ("piqa", "boolq", "arc_easy")
    noise = np.random.default_rng(0).integers(0, 2, (3, 200))
    base = [score(row.tolist(), task=task) for row, task in zip(noise, tasks, strict=True)]
    lifted = [score(np.maximum(row, np.arange(200) < 40).tolist(), task=t) for row, t in zip(noise, tasks, strict=True)]
    mixed = [score(np.roll(row, 1).tolist(), task=task) for row, task in zip(noise, tasks, strict=True)]
    assert accuracies_differ(lifted, base)
    assert not accuracies_differ(mixed, base)


@pytest.mark.parametrize("blocks", [2, 3, 5, 8, 20])
def test_perplexities_that_do_not_differ_seldom_seem_to(blocks: int) -> None:
    drawn = np.random.default_rng(0).normal(size=(2000, blocks))
    share = np.mean([paired_t(own) < 0.05 for own in drawn])
    assert share == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 2000))  # four standard errors
    assert paired_t(drawn[0] + 1000) < 0.05
    assert paired_t(np.zeros(blocks)) == 1.0
    assert paired_t(np.ones(blocks)) == 0.0
