"""A task's score, from likelihoods of lm-eval or of recorded requests; this module does not need lm-eval."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from larosa.errors import LarosaError


class ZeroShotError(LarosaError, RuntimeError):
    """A task is unknown, has no accuracy, or its data is not available."""


@dataclass(frozen=True)
class TaskScore:
    """One task's accuracy, with the outcome of every example for paired tests between methods."""

    task: str
    metric: str
    """`acc`: the likeliest choice is right; `acc_norm`: likeliest once divided by its length in characters.
    acc_norm where lm-eval measures it, which is what the LaRoSA paper reports of its seven tasks. `exact_match`:
    what was generated is the answer."""
    value: float
    """Fraction right, 0 to 1."""
    standard_error: float | None
    """lm-eval's: sqrt(p (1 - p) / (n - 1)), no finite-num_available correction. None for one example."""
    examples: int
    num_available: int
    """Size of the split that the examples were drawn from, excluded ones included."""
    split: str
    source: str
    document_ids: list[int]
    """Ascending row numbers in the split; `correct` is 1 or 0 for each. Of a group of tasks, the splits are one
    behind the other."""
    correct: list[float]
    shots: int = 0
    """Solved examples in the prompt."""
    excluded: int = 0
    """Examples of the split that could not be drawn, because the model was calibrated on what they ask about."""


def draw(task: str, num_available: int, examples: int | None, seed: int) -> list[int]:
    """Ascending row numbers, drawn without replacement by `seed` and `task`; `examples` None takes all."""
    if examples is None or examples >= num_available:
        return list(range(num_available))
    return sorted(random.Random(f"{seed}:{task}").sample(range(num_available), examples))


def standard_error(correct: Sequence[float]) -> float | None:
    """Of the mean, as lm-eval has it: from the sample variance. None for one example."""
    if len(correct) < 2:
        return None
    mean = sum(correct) / len(correct)
    variance = sum((value - mean) ** 2 for value in correct) / (len(correct) - 1)
    return math.sqrt(variance / len(correct))
