"""Tables, figures and one report of a folder of runs.

    larosa report runs --out report

`--out` gets report.html, one file to read offline, tables/*.{md,tex,csv} and figures/*.{png,pdf}; where methods were
measured beside magnitude Top-K on the same texts also methods.{md,csv,png}. Records that are damaged are named and
excluded.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from larosa.commands import typed


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status, 2 if the records cannot be read."""
    given = _parser().parse_args(arguments)
    from larosa_analysis import build, compact  # matplotlib waits until there is something to draw
    from larosa_analysis.records.entry import RecordsError

    with TemporaryDirectory() as folder:
        records = Path(folder) / "runs.jsonl"
        try:
            compact.write(given.runs, records)
            _method_table(records, given.texts, given.out)
        except (RecordsError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return build.main(["--records", folder, "--speed", str(given.speed or folder), "--out", str(given.out)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=typed("report"), description="Make tables, figures and report.html of a folder of runs."
    )
    parser.add_argument(
        "runs", type=Path, nargs="?", default=Path("runs"), metavar="RUNS", help="folder of records (default: runs)"
    )
    parser.add_argument(
        "--speed", type=Path, metavar="FOLDER", help="folder of decode-*.json that the decode benchmark wrote"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report"), metavar="FOLDER", help="written (default: %(default)s)"
    )
    parser.add_argument("--texts", help="of the method table, names with commas (default: all texts of the records)")
    return parser


def _method_table(records: Path, texts: str | None, out: Path) -> None:
    """Every method relative to magnitude Top-K; records that cannot be compared are no reason to stop."""
    from larosa_analysis.comparison import methods, rows
    from larosa_analysis.comparison.markdown import markdown
    from larosa_analysis.records.entry import RecordsError, load

    if not records.exists():
        return
    try:
        entries, names = load([records], texts.split(",") if texts else None)
        method_rows = rows.build(entries, names, None, rows.TOLERANCE)
        methods.write(method_rows, markdown(method_rows), out)
    except RecordsError as error:
        print(f"no method table: {error}")
        return
    print(f"{out / 'methods.md'}: methods relative to magnitude Top-K")


if __name__ == "__main__":
    sys.exit(main())
