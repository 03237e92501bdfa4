"""The method table in brief, for docs: a line per method, its ratio to magnitude Top-K by both metrics."""

from __future__ import annotations

from larosa_analysis.comparison.criteria import verdicts
from larosa_analysis.comparison.markdown import caption, criterion, interval, percent
from larosa_analysis.comparison.overhead import overhead_at_llama2_7b
from larosa_analysis.comparison.rows import Metric, Row, Rows


def summary(rows: Rows) -> str:
    """The section, without a newline at its end; order: mean ratio at equal weight sparsity, the last target first."""
    metrics: tuple[Metric, ...] = ("weight sparsity", "bytes read")
    columns = [(target, metric) for metric in metrics for target in rows.targets]
    by_column = {column: {row.entry.label: row for row in rows.standing(*column)} for column in columns}
    at_level = reversed(columns[: len(rows.targets)])
    labels = list(dict.fromkeys(label for column in at_level for label in by_column[column]))
    head = ["method", "overhead, % (at LLaMA2-7B)"]
    head += [f"{percent(t, 0)} %, equal {metric}" for t, metric in columns]
    lines = [head, ["---"] * len(head)]
    for label in labels:
        label_rows = [by_column[column].get(label) for column in columns]
        known = next(row for row in label_rows if row is not None)
        free = not known.entry.overhead
        shown = [_cell(row) for row in label_rows]
        if free:  # without overhead both are one
            shown = shown[: len(rows.targets)] * 2
        lines.append([label, _overhead(known), *shown])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    criteria = [criterion([v for v in verdicts(rows) if v.criterion == name], rows) for name in ("a", "b")]
    return "\n\n".join([caption(rows), table, *criteria])


def _cell(row: Row | None) -> str:
    return "-" if row is None else interval(row.compared.mean)


def _overhead(row: Row) -> str:
    at_7b = overhead_at_llama2_7b(row.entry.record)
    return f"{percent(row.entry.overhead)} ({'-' if at_7b is None else percent(at_7b)})"
