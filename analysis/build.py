"""All tables and figures of the paper with ours beside them, and one report, from records alone.

    python -m analysis.build [--records analysis/records] [--out report]

`--out` gets tables/tableNN.{md,tex,csv}, figures/figureN.{png,pdf} and report.html, one file to read offline. They tell
neither when nor where they were made: the same records give the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis import bank
from analysis.figures import every as figures
from analysis.figures.drawn import Drawn
from analysis.main_result import results
from analysis.records import RecordsError, write_atomically
from analysis.report import Picture, data_uri, html
from analysis.style import both
from analysis.tables import every, flops, render
from analysis.tables.cells import Table

_ROOT = Path(__file__).resolve().parent.parent
RECORDS = _ROOT / "analysis" / "records"
TIMINGS = _ROOT / "kernels" / "benchmarks" / "records"
MODELS = _ROOT / "conf" / "model"
FORMS = {"md": render.markdown, "tex": render.latex, "csv": render.csv_text}


def write_tables(tables: list[Table], folder: Path) -> None:
    """Every table in every form."""
    for table in tables:
        for ending, form in FORMS.items():
            write_atomically(folder / f"{table.name}.{ending}", form(table).encode())


def write_figures(drawn: list[Drawn], folder: Path) -> list[Picture]:
    """Every figure as PNG and PDF; what the report embeds."""
    pictures = []
    for own in drawn:
        files = both(own.figure) if own.figure is not None else {}
        for ending, content in files.items():
            write_atomically(folder / f"{own.name}.{ending}", content)
        image = data_uri(files["png"]) if files else ""
        model = own.name.partition("-")[2]
        title = f", {model}" if model else ""
        pictures.append(Picture(own.name, own.title, own.caption, own.missing, image, title))
    return pictures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m analysis.build", description="Build all tables and figures.")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of compact records")
    parser.add_argument("--speed", type=Path, default=TIMINGS, help="folder of decode-*.json")
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the models' shapes")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="FOLDER")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status, 2 if the records cannot be read."""
    given = _parser().parse_args(arguments)
    try:
        found = bank.read(given.records, given.speed)
        tables = every.build(found, flops.shapes(given.models))
        write_tables(tables, given.out / "tables")
        pictures = write_figures(figures.build(found), given.out / "figures")
        page = html(found, tables, pictures, results(found))
        write_atomically(given.out / "report.html", page.encode())
    except (RecordsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    drawn = sum(bool(picture.image) for picture in pictures)
    print(f"{given.out / 'report.html'}: {len(tables)} tables and {drawn} figures from {len(found.runs)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
