"""What quantised weights add to perplexity: each run on them against the same method and target on unquantised ones.

A block behind Table 9's rows of a model. Paired: a block of tokens costs the two runs nearly the same, so the error of
the ratio is far smaller than that of either perplexity.
"""

from __future__ import annotations

import numpy as np

from larosa.records.quantization_label import NONE, caption
from larosa_analysis.records.run import Run
from larosa_analysis.tables.cells import Block, Cell
from larosa_analysis.tables.names import short_names

TITLE = "what quantised weights add to perplexity, %"
_Place = tuple[float, str, str]
"""Target, method, schedule."""


def block(model: str, runs: list[Run]) -> Block | None:
    """A row for each method and target, a column for each quantisation; None without a pair. `runs` compare already."""
    unquantised = {_place(run): run for run in runs if run.entry.quantization == NONE and run.entry.nll}
    quantised: dict[_Place, dict[str, Run]] = {}
    for run in runs:
        if run.entry.quantization != NONE and run.entry.nll and _place(run) in unquantised:
            quantised.setdefault(_place(run), {})[run.entry.quantization] = run
    columns = sorted({name for by_name in quantised.values() for name in by_name})
    if not columns:
        return None
    names = short_names(method for _, method, _ in quantised)
    rows = []
    for place in sorted(quantised):
        level, method, schedule = place
        cells = [_added(unquantised[place], quantised[place].get(name)) for name in columns]
        rows.append([Cell(f"{100 * level:g}"), Cell(names[method]), Cell(schedule), *cells])
    texts = sorted({text for place in quantised for text in unquantised[place].entry.nll})
    words = (
        "Against the same method at the same target on unquantised weights: mean of the log ratio over the blocks of "
        f"{', '.join(texts)} together, ± its standard error, paired by block; "
        f"{caption(run.entry.record for by_name in quantised.values() for run in by_name.values())}."
    )
    return Block(f"{model}: {TITLE}", ("sparsity, %", "method", "schedule", *columns), rows, words)


def _place(run: Run) -> _Place:
    dense = run.entry.family == "dense"
    return 0.0 if dense else run.entry.target, run.method, "" if dense else run.entry.schedule


def _added(unquantised: Run, quantised: Run | None) -> Cell:
    """Over all texts of the unquantised run; nothing where the other one lacks one, or has fewer blocks of it."""
    differences = []
    for text, before in unquantised.entry.nll.items():
        after = quantised.entry.nll.get(text) if quantised is not None else None
        if after is None or len(after) != len(before):
            return Cell()
        differences.append((after - before) / unquantised.entry.predicted[text])
    log_ratios = np.concatenate(differences)
    ratio = float(np.exp(log_ratios.mean()))
    error = 100 * ratio * float(log_ratios.std(ddof=1)) / len(log_ratios) ** 0.5 if len(log_ratios) > 1 else None
    return Cell(value=100 * (ratio - 1), error=error)
