"""The speed table: tokens/s and speed-ups by target sparsity, from the committed records of larosa.decode.benchmark.

    python -m larosa_analysis.speed kernels/benchmarks/records/decode-*.json [--out FOLDER]

`--out` gets speed.csv and speed.png.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from larosa.records.disk import write_atomically
from larosa_analysis.records.entry import RecordsError
from larosa_analysis.records.timings import read
from larosa_analysis.speed.figure import draw
from larosa_analysis.speed.table import csv_text, table
from larosa_analysis.style import png


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status, 2 if no table can be made."""
    parser = argparse.ArgumentParser(prog="python -m larosa_analysis.speed", description="Make the speed table.")
    parser.add_argument("records", type=Path, nargs="+", metavar="RECORD.json")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for speed.csv and speed.png")
    given = parser.parse_args(arguments)
    try:
        records = read(given.records)
        text = table(records)
        if given.out:
            given.out.mkdir(parents=True, exist_ok=True)
            write_atomically(given.out / "speed.csv", csv_text(records).encode())
            write_atomically(given.out / "speed.png", png(draw(records)))
    except (RecordsError, OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
