"""The report: one HTML file with all tables and figures in it, to read top to bottom, offline, without scripts."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from larosa.records.packaged import in_checkout
from larosa_analysis.records.store import RecordStore
from larosa_analysis.report.main_result import READING, Result
from larosa_analysis.tables import render
from larosa_analysis.tables.cells import MISSING, Block, Table
from larosa_analysis.tables.from_runs import READING as TABLE_READING

_DENSITY = 1.6
_ABSENT = (MISSING, "cannot reach", "failed", "not ours", "")


@dataclass(frozen=True)
class Image:
    """A PNG inside the page."""

    source: str
    width: int
    """In CSS pixels: figures are saved for screens of twice the usual density, and print."""

    @classmethod
    def of(cls, content: bytes) -> Image:
        """From the file; its width stands in the header."""
        uri = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        return cls(uri, round(int.from_bytes(content[16:20]) / _DENSITY))


@dataclass(frozen=True)
class Picture:
    """A figure ready to be embedded."""

    name: str
    title: str
    caption: str
    missing: str
    image: Image | None
    model: str
    """Of a figure that exists for several models; else empty."""


def html(
    store: RecordStore, tables: list[Table], pictures: list[Picture], results: list[Result], images: list[Image]
) -> str:
    """The whole page. Raises jinja2's error where the template names what is not given."""
    folder = Path(__file__).parent / "templates"
    environment = Environment(  # values are escaped, and none may be missing
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "inline": inline, "wordy": wordy, "opens": opens, "heading": render.heading, "excluded": render.excluded,
        "missing": render.missing,
    }  # fmt: skip
    shown = [{"block": result.block, "image": image} for result, image in zip(results, images, strict=True)]
    return environment.get_template("report.html").render(
        counts=_counts(store), tables=tables, figures=pictures, results=shown, result_reading=READING,
        table_reading=TABLE_READING, absent=_ABSENT, again=_again(),
    )  # fmt: skip


def _again() -> str:
    """What makes this page again, with the runs that a command added."""
    if not in_checkout():
        return "larosa report runs"
    return "python -m larosa_analysis.compact runs analysis/records/mine.jsonl && python -m larosa_analysis.build"


def _counts(store: RecordStore) -> str:
    models = ", ".join(store.models) or "no model"
    return (
        f"From {len(store.runs)} runs ({models}), {len(store.diagnostics)} diagnostics of activations and "
        f"{len(store.timings)} timings."
    )


def inline(text: str) -> Markup:
    """Escaped text in which `code` and *emphasis* are marked up."""
    safe = str(escape(text))
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    return Markup(re.sub(r"(?<![\w*])\*([^*]+)\*(?![\w*])", r"<em>\1</em>", safe))


def wordy(block: Block, column: int) -> bool:
    """Whether a column holds words, to be aligned to the left."""
    texts = [row[column].text for row in block.rows if row[column].value is None]
    return any(re.search(r"[A-Za-z]{2}", text) for text in texts if text not in _ABSENT)


def opens(block: Block, number: int) -> bool:
    """Whether a row begins a new sparsity of the same table."""
    if number == 0 or "sparsity, %" not in block.columns or block.columns[0] == "source":
        return False
    column = block.columns.index("sparsity, %")
    return block.rows[number][column].text != block.rows[number - 1][column].text
