"""Outcomes of examples, written short enough to commit: which examples a task scored, and which were right.

Row numbers become gaps, a repeated gap once: 0, 1, 2, 3, 7 is `0,1x3,4`. Outcomes are one 0 or 1 per example, in the
same order. From both, two records can be paired example by example.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from larosa_analysis.records.entry import RecordsError

SEVEN = ("winogrande", "piqa", "openbookqa", "hellaswag", "boolq", "arc_easy", "arc_challenge")
"""The tasks whose unweighted mean the paper calls Acc7."""
LIKELIHOOD = ("acc", "acc_norm")
"""Metrics that compare given answers; any other is of generated ones."""


@dataclass(frozen=True, eq=False)
class Score:
    """One task's score, a fraction, with every example's outcome where the record holds them."""

    task: str
    metric: str
    value: float
    error: float | None
    examples: int
    excluded: int
    source: tuple[str, str, int, int]
    """Split, data set, its size, solved examples in the prompt: two scores are of one task only if these agree."""
    prompted: tuple[bool, int | None]
    """Whether prompts stood in the chat template; of generated answers, the most new tokens (None: the task's own)."""
    ids: NDArray[np.int64]
    correct: NDArray[np.int8]

    @classmethod
    def of(cls, score: dict[str, Any], settings: dict[str, Any] | None = None) -> Score:
        """Read a compact score; `settings` are the run's for its tasks. Raises RecordsError if ids and outcomes do not
        fit."""
        given = settings or {}
        new_tokens = None if score["metric"] in LIKELIHOOD else given.get("max_new_tokens")
        ids, correct = unpack(score.get("document_ids") or ""), score.get("correct") or ""
        if len(ids) != len(correct):
            raise RecordsError(f"{score['task']}: {len(ids)} example numbers, but {len(correct)} outcomes")
        error, population, shots = (score.get(key) for key in ("standard_error", "num_available", "shots"))
        return cls(
            task=str(score["task"]),
            metric=str(score["metric"]),
            value=float(score["value"]),
            error=None if error is None else float(error),
            examples=int(score["examples"]),
            excluded=int(score.get("excluded") or 0),
            source=(str(score.get("split")), str(score.get("source")), int(population or 0), int(shots or 0)),
            prompted=(bool(given.get("chat_template")), new_tokens),
            ids=ids,
            correct=np.frombuffer(correct.encode(), dtype=np.int8) - ord("0"),
        )

    def on(self, ids: NDArray[np.int64]) -> Score:
        """The score on some of its examples. Raises RecordsError where one was not scored."""
        if np.array_equal(ids, self.ids):
            return self
        place = {int(number): i for i, number in enumerate(self.ids)}
        missing = [int(number) for number in ids if int(number) not in place]
        if missing:
            raise RecordsError(f"{self.task}: example {missing[0]} was not scored")
        kept = self.correct[[place[int(number)] for number in ids]]
        value, count = float(kept.mean()), len(kept)
        error = float(np.sqrt(value * (1 - value) / (count - 1))) if count > 1 else None
        restricted = {"value": value, "error": error, "examples": count, "ids": ids, "correct": kept}
        return Score(**{**self.__dict__, **restricted})


def compact_score(score: dict[str, Any]) -> dict[str, Any]:
    """A score of `result.json` without lists; a compact one is itself. Raises RecordsError for other outcomes."""
    if isinstance(score.get("document_ids"), str):
        return score
    correct = score.get("correct") or []
    if any(value not in (0, 1) for value in correct):
        raise RecordsError(f"{score['task']}: an outcome must be 0 or 1, got {sorted(set(correct))}")
    right = "".join(str(int(value)) for value in correct)
    return score | {"document_ids": pack(score.get("document_ids") or []), "correct": right}


def pack(ids: list[int]) -> str:
    """Gaps between row numbers, the first from 0; a gap that comes N times in a row is written once, with xN."""
    gaps = [b - a for a, b in zip([0, *ids], ids, strict=False)]
    return ",".join(_run(gap, len(list(run))) for gap, run in groupby(gaps))


def _run(gap: int, count: int) -> str:
    return str(gap) if count == 1 else f"{gap}x{count}"


def unpack(text: str) -> NDArray[np.int64]:
    """The row numbers. Raises RecordsError for anything that `pack` does not write."""
    gaps: list[int] = []
    for run in text.split(",") if text else []:
        gap, _, count = run.partition("x")
        try:
            gaps += [int(gap)] * int(count or 1)
        except ValueError as error:
            raise RecordsError(f"example numbers must read like 0,1x3,4, got {run!r}") from error
    return np.cumsum(np.array(gaps, dtype=np.int64))
