"""Tables inside README and docs, each between two markers, and the figures that these pages show.

<!-- table: NAME -->
<!-- end table: NAME -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from larosa.records.disk import write_atomically
from larosa_analysis.comparison import models
from larosa_analysis.comparison.rows import Rows, build
from larosa_analysis.comparison.summary import summary
from larosa_analysis.records import timings
from larosa_analysis.records.entry import Record, RecordsError, load
from larosa_analysis.report import short_tables
from larosa_analysis.speed.table import table as speed_table
from larosa_analysis.tables import quantised, render
from larosa_analysis.tables.cells import Table

Known = Mapping[str, Callable[[], str]]
"""Name of a table -> its text."""


def marker(name: str) -> tuple[str, str]:
    """The lines before and after a table."""
    return f"<!-- table: {name} -->", f"<!-- end table: {name} -->"


def names(page: str) -> list[str]:
    """The tables that a page has markers for, in their order."""
    return re.findall(r"^<!-- table: (\S+) -->$", page, flags=re.MULTILINE)


def images(page: str) -> list[str]:
    """Links to the figures of `analysis/images` that a page shows, in their order."""
    return re.findall(r"^!\[[^\]]*\]\(((?:\.\./)?analysis/images/[^)\s]+\.png)\)", page, flags=re.MULTILINE)


def inserted(page: str, name: str, table: str, file: str) -> str:
    """The page with `table` between the markers of `name`. Raises RecordsError if they are not there once each."""
    start, end = marker(name)
    if page.count(start) != 1 or page.count(end) != 1 or page.index(start) > page.index(end):
        raise RecordsError(f"{file} needs one line `{start}` and below it one line `{end}`")
    before, rest = page.split(start)
    return f"{before}{start}\n{table}\n{end}{rest.split(end)[1]}"


def evidence(records: Path) -> models.Groups:
    """The records evidence-*.jsonl of a folder: methods on several models."""
    return models.groups(sorted(records.glob("evidence-*.jsonl")))


def known_tables(tables: list[Table], records: Path, timed: Path) -> Known:
    """What a page may ask for. `quality`, `models`: of evidence-*.jsonl; `methods`: of methods-*.jsonl; `speed`,
    `speed-full`: of decode-*.json."""

    def rows_of_methods() -> Rows:
        entries, texts = load(sorted(records.glob("methods-*.jsonl")))
        return build(entries, texts, None)

    def decode_timings() -> list[Record]:
        return timings.read(sorted(timed.glob("decode-*.json")))

    return {table.name: partial(render.brief, table) for table in tables} | {
        "quality": lambda: short_tables.quality(evidence(records)),
        "models": lambda: models.both(evidence(records)),
        "methods": lambda: summary(rows_of_methods()),
        "speed": lambda: short_tables.speed(decode_timings()),
        "speed-full": lambda: speed_table(decode_timings()),
        "quantised": lambda: _quantised(tables),
    }


def _quantised(tables: list[Table]) -> str:
    """What quantised weights add to perplexity, of every model with runs on them."""
    blocks = [block for table in tables for block in table.blocks if block.title.endswith(quantised.TITLE)]
    if not blocks:
        raise RecordsError(
            "no record on quantised weights has one on unquantised weights beside it: the table `quantised` needs both"
        )
    return "\n\n".join(map(render.block_brief, blocks))


def fill(path: Path, known: Known, check: bool) -> bool:
    """Put the tables between their markers; returns whether they stood there already. Raises RecordsError."""
    before = after = path.read_text(encoding="utf-8")
    for name in names(before):
        if name not in known:
            raise RecordsError(f"{path.name} asks for a table {name!r}; there is {', '.join(known)}")
        after = inserted(after, name, known[name](), path.name)
    if not check and before != after:
        write_atomically(path, after.encode())
    return before == after
