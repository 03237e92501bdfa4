"""How the methods compare: the increase in perplexity over dense, divided by magnitude Top-K's, of every model.

The rows of the method table (:mod:`larosa_analysis.comparison.rows`) as a block of the report, and its figure.
"""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from larosa_analysis.comparison.markdown import interval, percent
from larosa_analysis.comparison.overhead import overhead_at_llama2_7b
from larosa_analysis.comparison.ratio_figure import draw
from larosa_analysis.comparison.rows import REFERENCE, Metric, Row, Rows, build
from larosa_analysis.records.conditions import described
from larosa_analysis.records.entry import RecordsError
from larosa_analysis.records.run import Run
from larosa_analysis.records.store import RecordStore
from larosa_analysis.tables.cells import Block, Cell
from larosa_analysis.tables.group import every
from larosa_analysis.tables.names import short_names
from larosa_analysis.tables.texts import main_texts

READING = (
    "Increase in perplexity over dense, divided by that of magnitude Top-K at the target, mean over texts: below 1 "
    "beats plain Top-K. Each method at its best schedule. *Equal weight sparsity*: the same fraction of weight "
    "bytes is skipped; overhead is stated beside it. *Equal bytes read*: overhead is made up for by a higher sparsity. "
    "In brackets 95 %, paired bootstrap over evaluation blocks; another seed, calibration or "
    "choice of schedule is not in it."
)


@dataclass(frozen=True)
class Result:
    """One model's main table and figure."""

    block: Block
    figure: Figure


def results(store: RecordStore) -> list[Result]:
    """Of every model, and group of records that compare, with a dense one and magnitude Top-K that loses something."""
    drawn_results = []
    for model in store.models:
        for group in every(store.of(model), texts=True, tasks=()):
            rows = _rows(group.runs)
            if rows is not None:
                drawn_results.append(_result(model, rows, group.runs))
    return drawn_results


def _rows(runs: list[Run]) -> Rows | None:
    """The method table's rows on the texts that most methods have, at the targets where magnitude loses on all of them.

    None where there are no such.
    """
    texts = sorted(main_texts(runs, lambda run: (run.entry.label, round(20 * run.entry.target))))
    if not texts:
        return None
    measured = [run.entry.only(texts) for run in runs if set(texts) <= set(run.entry.nll)]
    entries = sorted(measured, key=lambda e: (e.label, e.target, e.schedule))
    targets = sorted({entry.target for entry in entries if entry.label == REFERENCE})
    for start in range(len(targets)):  # a low sparsity may lose nothing: no ratio to that
        try:
            return build(entries, texts, targets[start:])
        except RecordsError:
            continue
    return None


def _result(model: str, rows: Rows, runs: list[Run]) -> Result:
    places = _places(rows)
    by_place = {place: {row.entry.label: row for row in rows.standing(*place)} for place in places}
    at_level = [place for place in places if place[1] == "weight sparsity"]
    labels = list(dict.fromkeys(label for place in reversed(at_level) for label in by_place[place]))
    names = short_names(labels)
    columns = ["method", "overhead, %", "overhead at LLaMA2-7B, %"]
    columns += [f"{percent(target, 0)} %, equal {metric}" for target, metric in places]
    lines = []
    for label in labels:
        known = next(by_place[place][label] for place in reversed(at_level) if label in by_place[place])
        free = not known.entry.overhead  # without overhead both metrics are one
        label_rows = [by_place[target, "weight sparsity" if free else metric].get(label) for target, metric in places]
        seven = overhead_at_llama2_7b(known.entry.record)
        overhead = [Cell(value=100 * known.entry.overhead, digits=1), Cell("" if seven is None else percent(seven))]
        lines.append([Cell(names[label]), *overhead, *(_cell(row) for row in label_rows)])
    block = Block(model, tuple(columns), lines, described(runs))
    return Result(block, draw(rows, places, labels, names))


def _places(rows: Rows) -> list[tuple[float, Metric]]:
    """Targets under both counts; bytes read only where a method with overhead was measured at them."""
    paid: list[tuple[float, Metric]] = [
        (target, "bytes read")
        for target in rows.targets
        if any(row.entry.overhead for row in rows.standing(target, "bytes read"))
    ]
    return [*((target, "weight sparsity") for target in rows.targets), *paid]


def _cell(row: Row | None) -> Cell:
    return Cell() if row is None else Cell(interval(row.compared.mean))
