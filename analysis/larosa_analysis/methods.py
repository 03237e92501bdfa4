"""The method table: every method at equal byte-weighted level and at equal net bytes, from records alone.

    python -m larosa_analysis.methods RECORDS.jsonl [--readme README.md] [--out FOLDER] [--check]

RECORDS.jsonl is what `python -m larosa_analysis.compact` writes. `--out` gets methods.md, methods.csv (every record
that was considered, levels as fractions) and methods.png. `--readme` gets the summary between its markers; with `--check`
nothing is written, and the exit status is 1 if the README's table is not what the records give.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path

from larosa_analysis.extras import share_at_llama2_7b
from larosa_analysis.method_figure import draw
from larosa_analysis.method_markdown import markdown
from larosa_analysis.method_summary import summary
from larosa_analysis.readme import inserted
from larosa_analysis.records import RecordsError, load, write_atomically
from larosa_analysis.rows import TOLERANCE, Row, Rows, build
from larosa_analysis.style import png


def csv_text(rows: Rows) -> str:
    """Every row of every target and count, those that do not count included."""
    lines = [_csv_row(rows, row) for row in rows.rows]
    out = io.StringIO()
    writer = csv.DictWriter(out, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _csv_row(rows: Rows, row: Row) -> dict[str, object]:
    entry, ratio = row.entry, row.ratio
    line: dict[str, object] = {
        "target": row.target,
        "count": row.count,
        "method": entry.label,
        "schedule": entry.schedule,
        "status": row.status,
        "extras_share": entry.extras,
        "extras_share_llama2_7b": share_at_llama2_7b(entry.record),
        "level_asked": entry.asked,
        "level_realised": entry.level,
        "saved": row.saved,
        "ratio_mean": ratio and ratio.mean.value,
        "ratio_mean_low": ratio and ratio.mean.low,
        "ratio_mean_high": ratio and ratio.mean.high,
    }
    for text, increase in rows.increases.observed(entry).items():
        line |= {
            f"level_realised {text}": entry.realised[text],
            f"level_std_over_tokens {text}": entry.spread[text],
            f"increase {text}": increase,
            f"ratio {text}": ratio and ratio.by_text[text].value,
            f"ratio_low {text}": ratio and ratio.by_text[text].low,
            f"ratio_high {text}": ratio and ratio.by_text[text].high,
        }
    line |= {"reference": rows.reference[row.target].identity, "identity": entry.identity}
    line |= {"commit": entry.record["git"]["commit"], "created": entry.record["created"]}
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()}


def _write(rows: Rows, table: str, folder: Path) -> None:
    write_atomically(folder / "methods.md", (table + "\n").encode())
    write_atomically(folder / "methods.csv", csv_text(rows).encode())
    write_atomically(folder / "methods.png", png(draw(rows)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m larosa_analysis.methods", description="Make the method table.")
    parser.add_argument("records", type=Path, nargs="+", metavar="RECORDS.jsonl", help="one file or several")
    parser.add_argument("--readme", type=Path, help="put the table between its markers")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for methods.md, methods.csv and methods.png")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if --readme's table differs")
    parser.add_argument("--levels", help="targets, fractions with commas (default: those magnitude was asked for)")
    parser.add_argument("--texts", help="names with commas (default: all texts of the records)")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="of a level, a fraction (default: %(default)s)"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status: 1 if --check finds a difference, 2 if no table can be made."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.check and not given.readme:
        parser.error("--check needs --readme")
    try:
        targets = [float(level) for level in given.levels.split(",")] if given.levels else None
        entries, texts = load(given.records, given.texts.split(",") if given.texts else None)
        rows = build(entries, texts, targets, given.tolerance)
        table = markdown(rows)
        if given.readme:
            before = given.readme.read_text(encoding="utf-8")
            after = inserted(before, "methods", summary(rows), given.readme.name)
            if given.check:
                return _checked(before == after, given.readme.name)
            write_atomically(given.readme, after.encode())
        if given.out:
            _write(rows, table, given.out)
    except (RecordsError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table)
    return 0


def _checked(equal: bool, name: str) -> int:
    if not equal:
        print(f"{name}'s table is not what the records give: run again without --check", file=sys.stderr)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
