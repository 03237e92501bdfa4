"""What codes add to perplexity: each run on rounded weights against the same method at the same level on plain ones.

A block behind Table 9's rows of a model. Paired: a block of tokens costs the two runs nearly the same, so the error of
the ratio is far smaller than that of either perplexity.
"""

from __future__ import annotations

import numpy as np

from larosa.records.quantization_label import NONE, caption
from larosa_analysis.run import Run
from larosa_analysis.tables.cells import Block, Cell
from larosa_analysis.tables.names import short_names

TITLE = "what codes add to perplexity, %"
_Place = tuple[float, str, str]
"""Level, method, schedule."""


def block(model: str, runs: list[Run]) -> Block | None:
    """A row for each method and level, a column for each quantisation; None without a pair. `runs` compare already."""
    plain = {_place(run): run for run in runs if run.entry.quantization == NONE and run.entry.nll}
    rounded: dict[_Place, dict[str, Run]] = {}
    for run in runs:
        if run.entry.quantization != NONE and run.entry.nll and _place(run) in plain:
            rounded.setdefault(_place(run), {})[run.entry.quantization] = run
    columns = sorted({name for own in rounded.values() for name in own})
    if not columns:
        return None
    names = short_names(method for _, method, _ in rounded)
    rows = []
    for place in sorted(rounded):
        level, method, schedule = place
        cells = [_added(plain[place], rounded[place].get(name)) for name in columns]
        rows.append([Cell(f"{100 * level:g}"), Cell(names[method]), Cell(schedule), *cells])
    texts = sorted({text for place in rounded for text in plain[place].entry.nll})
    words = (
        "Against the same method at the same level on weights as they are: mean of the log ratio over the blocks of "
        f"{', '.join(texts)} together, ± its standard error, paired by block; "
        f"{caption(run.entry.record for own in rounded.values() for run in own.values())}."
    )
    return Block(f"{model}: {TITLE}", ("level, %", "method", "schedule", *columns), rows, words)


def _place(run: Run) -> _Place:
    dense = run.entry.family == "dense"
    return 0.0 if dense else run.entry.asked, run.method, "" if dense else run.entry.schedule


def _added(plain: Run, rounded: Run | None) -> Cell:
    """Over all texts of the plain run; nothing where the other one lacks one, or was measured on fewer blocks of it."""
    differences = []
    for text, before in plain.entry.nll.items():
        after = rounded.entry.nll.get(text) if rounded is not None else None
        if after is None or len(after) != len(before):
            return Cell()
        differences.append((after - before) / plain.entry.predicted[text])
    found = np.concatenate(differences)
    ratio = float(np.exp(found.mean()))
    error = 100 * ratio * float(found.std(ddof=1)) / len(found) ** 0.5 if len(found) > 1 else None
    return Cell(value=100 * (ratio - 1), error=error)
