"""The method table in brief, for the README: a line a method, its ratio to magnitude Top-K under both counts."""

from __future__ import annotations

from larosa_analysis.bars import verdicts
from larosa_analysis.extras import share_at_llama2_7b
from larosa_analysis.method_markdown import bar, caption, interval, percent
from larosa_analysis.rows import Count, Row, Rows


def summary(rows: Rows) -> str:
    """The section, without a newline at its end; order: the mean ratio at equal level, the last target first."""
    counts: tuple[Count, ...] = ("level", "net bytes")
    columns = [(target, count) for count in counts for target in rows.targets]
    found = {column: {row.entry.label: row for row in rows.standing(*column)} for column in columns}
    labels = list(dict.fromkeys(label for column in reversed(columns[: len(rows.targets)]) for label in found[column]))
    head = ["method", "extras, % (at LLaMA2-7B)"]
    head += [f"{percent(t, 0)} %, equal {'level' if c == 'level' else 'net bytes'}" for t, c in columns]
    lines = [head, ["---"] * len(head)]
    for label in labels:
        own = [found[column].get(label) for column in columns]
        known = next(row for row in own if row is not None)
        free = not known.entry.extras
        shown = [_cell(row) for row in own]
        if free:  # without extras net bytes are the level
            shown = shown[: len(rows.targets)] * 2
        lines.append([label, _extras(known), *shown])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    bars = [bar([v for v in verdicts(rows) if v.bar == name], rows) for name in ("a", "b")]
    return "\n\n".join([caption(rows), table, *bars])


def _cell(row: Row | None) -> str:
    return "-" if row is None else interval(row.compared.mean)


def _extras(row: Row) -> str:
    at_7b = share_at_llama2_7b(row.entry.record)
    return f"{percent(row.entry.extras)} ({'-' if at_7b is None else percent(at_7b)})"
