"""The paper's own numbers as it prints them, one CSV a table, and what is known to be misprinted."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

Printed = dict[str, str]
"""One row: column -> text as printed."""


def rows(name: str, spread: tuple[str, str] | None = None) -> list[Printed]:
    """The rows of `<name>.csv`. `spread` = (column, value): every value of `column` becomes a column of its own."""
    printed = list(_read(name))
    if spread is None:
        return printed
    column, value = spread
    wide: dict[tuple[tuple[str, str], ...], Printed] = {}
    for row in printed:
        keys = tuple((key, text) for key, text in row.items() if key not in spread)
        wide.setdefault(keys, dict(keys))[row[column]] = row[value]
    return list(wide.values())


@lru_cache(maxsize=1)
def models() -> frozenset[str]:
    """Every model that the paper has in a table."""
    names = (path.stem for path in Path(__file__).parent.glob("table*.csv"))
    return frozenset(row["model"] for name in names for row in _read(name))


def notes(number: int, row: Printed) -> Iterator[tuple[str, str]]:
    """What is wrong with a row of a table (nothing with no row): column (empty: the whole row) and a text."""
    if row.get("note"):
        yield "", row["note"].removeprefix("misprint: ")
    for note in _read("misprints"):
        if int(note["table"]) == number and note["where"] and _meant(note["where"], row):
            yield note["column"], note["text"]


def remarks(number: int) -> list[str]:
    """What is to be said of a table as a whole."""
    return [note["text"] for note in _read("misprints") if int(note["table"]) == number and not note["where"]]


def _meant(where: str, row: Printed) -> bool:
    return all(row.get(key) == value for key, value in (part.split("=") for part in where.split(";")))


def _read(name: str) -> Iterator[Printed]:
    with (Path(__file__).parent / f"{name}.csv").open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)
