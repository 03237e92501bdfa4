"""The speed table: tokens a second and speed-ups by level, from the committed records of larosa.decode.benchmark.

    python -m larosa_analysis.speed kernels/benchmarks/records/decode-*.json [--out FOLDER]

`--out` gets speed.csv and speed.png. A speed-up is over the fastest dense decoder of the same process; beside it stands
the one that the bytes alone would give. `python -m larosa_analysis.build --readme` puts the table into README.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from larosa_analysis import checksum
from larosa_analysis.quantised import NONE
from larosa_analysis.records import RecordsError, write_atomically
from larosa_analysis.style import LINE_STYLES, SPARE, png

Record = dict[str, Any]
EXTRAS = {
    "none": "nothing added",
    "adapter": "a dense adapter a layer",
    "adapters": "two dense adapters a layer",
    "int8": "two int8 transforms a layer",
    "transform": "two dense transforms a layer",
}
COLUMNS = (
    "model", "extras", "codes", "rule", "level", "context", "new_tokens", "ms_p50", "tokens_per_s", "speedup", "ideal",
    "share_of_peak", "gpu", "date",
)  # fmt: skip
RULES = {"top-k": "Top-K", "limits": "limits given"}


@dataclass(frozen=True)
class Cell:
    """One timed plan; level is a fraction, ideal what the bytes read allow, both speed-ups over the best dense."""

    record: Record
    rule: str
    level: float
    context: int
    new_tokens: int
    ms: float
    tokens_per_s: float
    speedup: float
    ideal: float
    share_of_peak: float | None

    @property
    def line(self) -> tuple[int, str, int, int]:
        """What stands in one line: a record, a rule, and lengths."""
        return id(self.record), self.rule, self.context, self.new_tokens

    @property
    def label(self) -> str:
        """Model, extras and rule."""
        extras = EXTRAS.get(self.record["extras"], self.record["extras"])
        return f"{self.record['model']}, {extras}{codes(self.record)}, {RULES[self.rule]}"


def codes(record: Record) -> str:
    """What is quantised, for a label; records from before there was any say nothing."""
    parts = {"weights": record.get("quantization", NONE)} | {key: record.get(key, NONE) for key in ("head", "adapters")}
    return "".join(f", {form} {part}" for part, form in parts.items() if form != NONE)


def read(paths: list[Path]) -> list[Record]:
    """The records, in the order given, without their checksums. Raises RecordsError on anything else."""
    records = []
    for path in paths:
        try:
            record = checksum.read(path)
        except checksum.DamagedError as error:
            raise RecordsError(f"{path}: {error}; measure it again with larosa.decode.benchmark") from error
        if record.get("kind") != "decode" or record.get("schema") != 1:
            raise RecordsError(f"{path}: expected a record of larosa.decode.benchmark, schema 1")
        if not record["gate"]:
            raise RecordsError(f"{path}: timed without a correctness gate")
        backends = {row.get("backend", "triton") for row in record["rows"]}
        if str(record["device"]).startswith("cpu") or backends != {"triton"}:
            raise RecordsError(
                f"{path}: {', '.join(sorted(backends))} on {record['device']} is no speed measurement; expected the "
                "Triton kernels on a GPU"
            )
        records.append(record)
    return records


def best_dense(record: Record, context: int, new_tokens: int) -> dict[str, Any]:
    """The fastest dense row at these lengths."""
    rows = [row for row in record["rows"] if row["kind"] == "dense" and _at(row) == (context, new_tokens)]
    found: dict[str, Any] = min(rows, key=lambda row: float(row["ms_per_token"]["p50"]))
    return found


def _at(row: dict[str, Any]) -> tuple[int, int]:
    return int(row["context"]), int(row["new_tokens"])


def cells(records: list[Record]) -> list[Cell]:
    """Every sparse row, records in their order, then rule, then level."""
    found = []
    for record in records:
        for row in (row for row in record["rows"] if row["kind"] == "sparse"):
            rule, level = row["name"].split(" ")[0], float(row["name"].split(" ")[1]) / 100
            dense = best_dense(record, *_at(row))
            ideal = dense["read_bytes"]["total"] / row["read_bytes"]["total"]
            found.append(
                Cell(
                    record, rule, level, *_at(row), row["ms_per_token"]["p50"], row["tokens_per_s"], row["speedup"],
                    ideal, row["share_of_peak"],
                )
            )  # fmt: skip
    order = {id(record): place for place, record in enumerate(records)}
    return sorted(found, key=lambda c: (order[id(c.record)], c.context, c.new_tokens, c.rule == "limits", c.level))


def table(records: list[Record]) -> str:
    """Markdown: a line for a model, extras and rule; conditions above it."""
    every = cells(records)
    levels = sorted({cell.level for cell in every})
    lines = [
        _conditions(records),
        "",
        "| | context + new | dense | " + " | ".join(f"{100 * level:g} %" for level in levels) + " |",
        "|---|---|---|" + "---|" * len(levels),
    ]
    for key in dict.fromkeys(cell.line for cell in every):
        own = {cell.level: cell for cell in every if cell.line == key}
        first = next(iter(own.values()))
        dense = best_dense(first.record, first.context, first.new_tokens)
        shown = [_cell(own[level]) if level in own else "-" for level in levels]
        lengths, speed = f"{first.context} + {first.new_tokens}", f"{dense['tokens_per_s']:.0f}"
        where = f", {first.record['device']}" if len({record["device"] for record in records}) > 1 else ""
        lines.append(f"| {first.label}{where} | {lengths} | {speed} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _cell(cell: Cell) -> str:
    return f"{cell.tokens_per_s:.0f} ({cell.speedup:.2f}x of {cell.ideal:.2f}x)"


def machine(records: list[Record]) -> str:
    """GPU, precision, weights, versions and dates that the records share."""
    gpus = _all(record["device"] for record in records)
    versions = _all(f"torch {r['versions']['torch']}, Triton {r['versions']['triton']}" for r in records)
    made = f"{_all(r['weights'] for r in records)} weights at the true shapes; {versions}"
    when = f"driver {_all(r['driver'] for r in records)}, {_all(r['date'][:10] for r in records)}"
    return f"{gpus}, {_all(r['dtype'] for r in records)}, batch 1, {made}, {when}"


def _conditions(records: list[Record]) -> str:
    plain = [record for record in records if record.get("quantization", NONE) == NONE]
    selection = [us for r in plain for own in r["selection_us"].values() for us in own.values()]
    text = (
        f"Tokens a second on {machine(records)}. `dense` is the fastest of cuBLAS in three layouts and of these "
        "kernels, in the same process; in brackets the speed-up over it, and what the bytes would allow. The gate was "
        "green before every time."
    )
    if selection:
        text += (
            f" Of weights that are no codes, one exact selection costs {min(selection):.1f} to {max(selection):.1f} us."
        )
    return text


def _all(values: Any) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))


def csv_text(records: list[Record]) -> str:
    """Every sparse row."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for c in cells(records):
        numbers = [c.context, c.new_tokens, c.ms, c.tokens_per_s, c.speedup, c.ideal, c.share_of_peak]
        writer.writerow(
            [
                c.record["model"],
                c.record["extras"],
                codes(c.record).removeprefix(", ") or "none",
                c.rule,
                c.level,
                *numbers,
                c.record["device"],
                c.record["date"],
            ]
        )
    return out.getvalue()


def draw(records: list[Record]) -> Figure:
    """Speed-up against level: measured with markers, what the bytes allow as a thin line of the same colour."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    every = cells(records)
    spare = [own for own in SPARE if own[0] != "#F0E442"]  # too pale for a thin line
    styles = itertools.cycle([("#0072B2", "D"), ("#E69F00", "o"), ("#009E73", "^"), *spare])
    several = len({(c.context, c.new_tokens) for c in every}) > 1
    for place, key in enumerate(dict.fromkeys(c.line for c in every)):
        own = [c for c in every if c.line == key]
        (colour, mark), levels = next(styles), [100 * c.level for c in own]
        line = LINE_STYLES[place % 3]  # the dotted one is for what the bytes allow
        axes.plot(levels, [c.speedup for c in own], line, color=colour, marker=mark, label=_name(own[0], several))
        axes.plot(levels, [c.ideal for c in own], ":", color=colour, linewidth=0.8)
    axes.axhline(1.0, color="#666666", linewidth=0.8)
    axes.set_xlabel("entries dropped at every site [%]")
    axes.set_ylabel("speed-up over the fastest dense decoder")
    axes.set_title("Decode step, batch 1; dotted: what the bytes read would allow", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")
    return figure


def _name(cell: Cell, lengths: bool) -> str:
    return f"{cell.label}, {cell.context} + {cell.new_tokens}" if lengths else cell.label


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
