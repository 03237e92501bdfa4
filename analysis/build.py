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
from analysis.records import RecordsError, write_atomically
from analysis.tables import every, flops, render
from analysis.tables.cells import Table

FORMS = {"md": render.markdown, "tex": render.latex, "csv": render.csv_text}


def write_tables(tables: list[Table], folder: Path) -> None:
    """Every table in every form."""
    for table in tables:
        for ending, form in FORMS.items():
            write_atomically(folder / f"{table.name}.{ending}", form(table).encode())


def _parser() -> argparse.ArgumentParser:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(prog="python -m analysis.build", description="Build all tables and figures.")
    parser.add_argument("--records", type=Path, default=root / "analysis" / "records", help="folder of compact records")
    parser.add_argument(
        "--speed", type=Path, default=root / "kernels" / "benchmarks" / "records", help="folder of decode-*.json"
    )
    parser.add_argument("--models", type=Path, default=root / "conf" / "model", help="folder of the models' shapes")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="FOLDER")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status, 2 if the records cannot be read."""
    given = _parser().parse_args(arguments)
    try:
        found = bank.read(given.records, given.speed)
        tables = every.build(found, flops.shapes(given.models))
        write_tables(tables, given.out / "tables")
    except (RecordsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: {len(tables)} tables from {len(found.runs)} runs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
