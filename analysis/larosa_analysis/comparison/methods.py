"""The method table: every method at equal weight sparsity and at equal weight bytes read, from records alone.

    python -m larosa_analysis.comparison.methods RECORDS.jsonl [--out FOLDER]

RECORDS.jsonl is what `python -m larosa_analysis.compact` writes. `--out` gets methods.md, methods.csv (every record
that was considered, sparsities as fractions) and methods.png. docs/results.md has the summary, which
`larosa_analysis.build` writes.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path

from larosa.records.disk import write_atomically
from larosa_analysis.comparison.figure import draw
from larosa_analysis.comparison.markdown import markdown
from larosa_analysis.comparison.overhead import overhead_at_llama2_7b
from larosa_analysis.comparison.rows import TOLERANCE, Row, Rows, build
from larosa_analysis.records.entry import RecordsError, load
from larosa_analysis.style import png


def csv_text(rows: Rows) -> str:
    """Every row of every target and metric, those that do not count included."""
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
        "metric": row.metric,
        "method": entry.label,
        "schedule": entry.schedule,
        "status": row.status,
        "overhead_fraction": entry.overhead,
        "overhead_fraction_llama2_7b": overhead_at_llama2_7b(entry.record),
        "target_sparsity": entry.target,
        "achieved_sparsity": entry.weight_sparsity,
        "saved": row.saved,
        "ratio_mean": ratio and ratio.mean.value,
        "ratio_mean_low": ratio and ratio.mean.low,
        "ratio_mean_high": ratio and ratio.mean.high,
    }
    for text, increase in rows.increases.observed(entry).items():
        line |= {
            f"achieved_sparsity {text}": entry.achieved[text],
            f"std_over_tokens {text}": entry.spread[text],
            f"increase {text}": increase,
            f"ratio {text}": ratio and ratio.by_text[text].value,
            f"ratio_low {text}": ratio and ratio.by_text[text].low,
            f"ratio_high {text}": ratio and ratio.by_text[text].high,
        }
    line |= {"reference": rows.reference[row.target].identity, "identity": entry.identity}
    line |= {"commit": entry.record["git"]["commit"], "created": entry.record["created"]}
    return {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()}


def write(rows: Rows, table: str, folder: Path) -> None:
    """methods.md, methods.csv and methods.png in `folder`."""
    write_atomically(folder / "methods.md", (table + "\n").encode())
    write_atomically(folder / "methods.csv", csv_text(rows).encode())
    write_atomically(folder / "methods.png", png(draw(rows)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m larosa_analysis.comparison.methods", description="Make the method table."
    )
    parser.add_argument("records", type=Path, nargs="+", metavar="RECORDS.jsonl", help="one file or several")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for methods.md, methods.csv and methods.png")
    parser.add_argument("--targets", help="sparsities, fractions with commas (default: those of magnitude Top-K)")
    parser.add_argument("--texts", help="names with commas (default: all texts of the records)")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="of a target, a fraction (default: %(default)s)"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status, 2 if no table can be made."""
    given = _parser().parse_args(arguments)
    try:
        targets = [float(target) for target in given.targets.split(",")] if given.targets else None
        entries, texts = load(given.records, given.texts.split(",") if given.texts else None)
        rows = build(entries, texts, targets, given.tolerance)
        table = markdown(rows)
        if given.out:
            write(rows, table, given.out)
    except (RecordsError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
