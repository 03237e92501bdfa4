"""A table as data: blocks of rows of cells, with what is said above and below them. How it looks is for `render`."""

from __future__ import annotations

from dataclasses import dataclass, field

MISSING = "missing"
"""What stands in a cell that no record fills."""


@dataclass(frozen=True)
class Cell:
    """One value: a text as it stands, or a number with its error."""

    text: str = ""
    value: float | None = None
    error: float | None = None
    digits: int = 2
    best: bool = False
    notes: tuple[int, ...] = ()
    """Footnotes, from 1."""

    @property
    def shown(self) -> str:
        """The cell in words, without emphasis and footnotes; nothing is a dash."""
        if self.value is None:
            return self.text or "-"
        form = f".{self.digits}f" if abs(self.value) < 10000 else ".3g"
        return f"{self.value:{form}}" + ("" if self.error is None else f" ± {self.error:{form}}")


@dataclass(frozen=True)
class Block:
    """Rows under one head; the caption holds the conditions."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[Cell]]
    caption: str = ""
    folded: bool = False
    """Whether the report shows it only when asked: rows without a value of ours."""


@dataclass(frozen=True)
class Missing:
    """Cells of a model without a record, and the command that fills them; None where no sweep does."""

    what: str
    cells: int
    command: str | None


@dataclass(frozen=True)
class Table:
    """One of the paper's tables, ours beside it."""

    number: int
    title: str
    blocks: list[Block]
    reading: str
    """How to read it."""
    footnotes: list[str] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """`table02`."""
        return f"table{self.number:02d}"


class Footnotes:
    """Texts in the order of their first use; the same text has one number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, text: str) -> int:
        """The number of a text, from 1."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1
