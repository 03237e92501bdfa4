"""The texts of a table: those that most of its rows were measured on.

A search over many settings may read a text of its own, so that the others stay unseen; its runs must not give every
other row a column that it cannot fill.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace

from larosa_analysis.records.entry import Entry
from larosa_analysis.records.run import Run


def main_texts(runs: list[Run], row: Callable[[Run], Hashable]) -> set[str]:
    """The texts that at least half of the rows with a perplexity hold, dense ones apart."""
    rows: dict[Hashable, set[str]] = defaultdict(set)
    for run in runs:
        if run.entry.family != "dense" and run.entry.nll:
            rows[row(run)] |= set(run.entry.nll)
    held = [text for texts in rows.values() for text in texts]
    return {text for text in held if 2 * held.count(text) >= len(rows)}


def on(runs: list[Run], texts: Iterable[str]) -> list[Run]:
    """The runs without perplexity on other texts; those that then have neither a text nor a task are excluded."""
    kept = [_on(run, set(texts)) for run in runs]
    return [run for run in kept if run.entry.nll or run.scores or run.entry.family == "dense"]


def _on(run: Run, texts: set[str]) -> Run:
    if set(run.entry.nll) <= texts:
        return run
    metrics = run.entry.record["metrics"]
    kept = {
        name: {text: values for text, values in metrics[name].items() if text in texts}
        for name in ("perplexity", "achieved_sparsity")
    }
    return replace(run, entry=Entry.of(run.entry.record | {"metrics": metrics | kept}))
