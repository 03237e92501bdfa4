"""Our value for a column, from a run: a cell with its error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from larosa_analysis.records.entry import Record
from larosa_analysis.records.outcomes import SEVEN
from larosa_analysis.records.run import Run
from larosa_analysis.tables.cells import MISSING, Cell
from larosa_analysis.tables.flops import Shape, adapters, tflops
from larosa_analysis.tables.match import nominal_sparsity, rotation


@dataclass(frozen=True)
class Context:
    """What a value may need besides the run."""

    shapes: dict[str, Shape]
    covariances: list[Record]


def measured(source: str, run: Run, context: Context) -> Cell:
    """The cell of a source (see :mod:`larosa_analysis.tables.spec`); MISSING if the run does not hold it."""
    kind, _, name = source.partition(":")
    return _SOURCES[kind](run, name, context) or Cell(MISSING)


def _perplexity(run: Run, text: str, _context: Context) -> Cell | None:
    perplexity = run.entry.record["metrics"]["perplexity"].get(text)
    return perplexity and Cell(value=perplexity["perplexity"], error=perplexity["standard_error"])


def _task(run: Run, task: str, _context: Context) -> Cell | None:
    score = run.scores.get(task)
    if score is None:
        return None
    return Cell(value=100 * score.value, error=None if score.error is None else 100 * score.error)


def _acc7(run: Run, _name: str, _context: Context) -> Cell | None:
    scores = [run.scores[task] for task in SEVEN if task in run.scores]
    if len(scores) < len(SEVEN):
        return None
    errors = [score.error for score in scores]
    known = [error for error in errors if error is not None]
    error = 100 * float(np.sqrt(np.sum(np.square(known)))) / len(SEVEN) if len(known) == len(SEVEN) else None
    return Cell(value=100 * float(np.mean([score.value for score in scores])), error=error)


def _level(run: Run, site: str, _context: Context) -> Cell | None:
    """Achieved, mean over texts and layers; ± over tokens, mean over layers."""
    levels = list(run.entry.record["metrics"]["achieved_sparsity"].values())
    if not levels:
        return None
    spread = [level["site_std_over_tokens"][site] for level in levels if "site_std_over_tokens" in level]
    mean = float(np.mean([level["site_mean"][site] for level in levels]))
    return Cell(value=100 * mean, error=100 * float(np.mean(spread)) if spread else None, digits=1)


def _count(run: Run, _name: str, _context: Context) -> Cell:
    """The achieved sparsity by the paper's count."""
    return Cell(value=100 * nominal_sparsity(run), digits=1)


def _flops(run: Run, _name: str, _context: Context) -> Cell | None:
    shape = run.config["model"]["shape"]
    if run.entry.family != "dense" and not rotation(run):
        return None
    return flops_cell(shape, rotation(run))


def flops_cell(shape: Shape, basis: str) -> Cell:
    """Operations need no run: only the shape, and how often the basis changes."""
    return Cell(value=tflops(shape, adapters(shape, basis)), digits=3)


def overhead_as_stored(run: Run) -> float:
    """Overhead as a fraction of the seven projections, each as it is stored."""
    quantised = run.entry.record["metrics"]["accounting"].get("quantised")
    if quantised is None:
        return run.entry.overhead
    return float(quantised["overhead_bytes"] / quantised["projection_bytes"])


def _bytes(run: Run, _name: str, _context: Context) -> Cell:
    """What a token reads of the seven projections, overhead included, as planned, of their bytes at 16 bits."""
    counted = run.entry.record["metrics"]["accounting"]
    quantised = counted.get("quantised")
    fraction = counted["read_fraction"] if quantised is None else quantised["read_fraction_of_16_bit"]
    return Cell(value=100 * fraction, digits=1)


def _cosine(run: Run, reference: str, context: Context) -> Cell | None:
    """Mean over layers, to the reference set or, where it was not measured, to the first."""
    calibration = run.entry.record["data"].get("calibration") or {}
    for record in (r for r in context.covariances if r["model"] == run.model):
        sets = record["values"]["sets"]
        if calibration.get("text") in sets:
            first = sets.index(reference) if reference in sets else 0
            return Cell(value=float(record["values"]["cosine"][first][sets.index(calibration["text"])]), digits=4)
    return None


_SOURCES: dict[str, Callable[[Run, str, Context], Cell | None]] = {
    "ppl": _perplexity,
    "task": _task,
    "acc7": _acc7,
    "level": _level,
    "count": _count,
    "bytes": _bytes,
    "flops": _flops,
    "cosine": _cosine,
}

LOWER_IS_BETTER = {"ppl": True, "task": False, "acc7": False}
"""Sources that methods compete in."""
