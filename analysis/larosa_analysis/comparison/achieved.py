"""Achieved sparsity per token, by text: calibrated thresholds against Top-K (the data of the paper's Figure 3c).

    python -m larosa_analysis.comparison.achieved RECORDS.jsonl [--target 0.5] [--out FOLDER]

RECORDS.jsonl is what `python -m larosa_analysis.compact` writes. Top-K drops the same fraction of every
token; a threshold drops what falls below it, so its fraction varies with the text and from token to token. `--out` gets
achieved.csv and achieved.png.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from larosa.records.disk import write_atomically
from larosa.records.method_settings import method_of
from larosa_analysis.records.entry import Record, RecordsError, read_lines
from larosa_analysis.style import method_styles, png


@dataclass(frozen=True)
class Achieved:
    """Weight sparsity of one method on one text, fractions; spread over its tokens."""

    method: str
    selector: str
    target: float
    text: str
    mean: float
    deviation: float
    least: float
    most: float
    tokens: int


def read(paths: list[Path]) -> list[Achieved]:
    """A line for every method, target and text; of several schedules the first record. Raises RecordsError."""
    cells = of(record for path in paths for record in read_lines(path))
    if not cells:
        raise RecordsError("no record tells what sparsity was measured: expected lines of larosa_analysis.compact")
    return cells


def of(records: Iterable[Record]) -> list[Achieved]:
    """The same of records in memory; none of those that measured no sparsity."""
    cells: dict[tuple[str, float, str], Achieved] = {}
    for record in records:
        if "achieved_sparsity" not in record.get("metrics", {}):
            continue
        label, target = record["label"], float(record["metrics"]["accounting"]["target_sparsity"])
        selector = method_of(record["config"])["selector"]
        for text, sparsity in record["metrics"]["achieved_sparsity"].items():
            mean, deviation = sparsity["weight_sparsity_mean"], sparsity["weight_sparsity_std_over_tokens"]
            least, most = sparsity["weight_sparsity_min"], sparsity["weight_sparsity_max"]
            tokens = int(sparsity["sparse_tokens"])
            cell = Achieved(label, selector, target, text, mean, deviation, least, most, tokens)
            cells.setdefault((label, target, text), cell)
    return sorted(cells.values(), key=lambda cell: (cell.method, cell.target, cell.text))


def table(cells: list[Achieved], target: float) -> str:
    """Markdown: the methods at a target, mean and standard deviation over tokens, and the extremes."""
    at_target = [cell for cell in cells if abs(cell.target - target) < 1e-9]
    if not at_target:
        raise RecordsError(f"no record has the target {target}; there are {sorted({cell.target for cell in cells})}")
    texts = sorted({cell.text for cell in at_target})
    lines = [f"| target {100 * target:g} % | " + " | ".join(texts) + " |", "|---|" + "---|" * len(texts)]
    for method in dict.fromkeys(cell.method for cell in at_target):
        shown = {cell.text: cell for cell in at_target if cell.method == method}
        lines.append(f"| {method} | " + " | ".join(_cell(shown.get(text)) for text in texts) + " |")
    return "\n".join(lines)


def _cell(cell: Achieved | None) -> str:
    if cell is None:
        return "-"
    mean, deviation, least, most = (100 * v for v in (cell.mean, cell.deviation, cell.least, cell.most))
    return f"{mean:.1f} +- {deviation:.1f} ({least:.0f} to {most:.0f}) %"


def csv_text(cells: list[Achieved]) -> str:
    """Every cell, fractions."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([each.name for each in fields(Achieved)])
    writer.writerows(astuple(cell) for cell in cells)
    return out.getvalue()


def draw(cells: list[Achieved], target: float) -> Figure:
    """Mean with one standard deviation over tokens, thin lines to the extremes; texts side by side."""
    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    draw_on(axes, cells, target)
    axes.set_title("Achieved sparsity: mean, standard deviation and extremes over tokens", fontsize=10)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    return figure


def draw_on(axes: Axes, cells: list[Achieved], target: float) -> None:
    """The same into given axes, without title and legend."""
    at_target = [cell for cell in cells if abs(cell.target - target) < 1e-9]
    methods, texts = list(dict.fromkeys(cell.method for cell in at_target)), sorted({cell.text for cell in at_target})
    styles = method_styles(methods)
    for place, method in enumerate(methods):
        mine = [cell for cell in at_target if cell.method == method]
        x = [texts.index(cell.text) + 0.8 * (place + 0.5) / len(methods) - 0.4 for cell in mine]
        colour, mark = styles[method]
        axes.vlines(x, [100 * c.least for c in mine], [100 * c.most for c in mine], color=colour, linewidth=0.8)
        means, deviations = [100 * c.mean for c in mine], [100 * c.deviation for c in mine]
        axes.errorbar(x, means, deviations, color=colour, marker=mark, linestyle="none", linewidth=2.5, label=method)
    axes.axhline(100 * target, color="#666666", linewidth=0.8)
    axes.set_xticks(range(len(texts)), texts)
    axes.set_ylabel("weight sparsity per token [%]")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status, 2 if nothing can be made of the records."""
    parser = argparse.ArgumentParser(
        prog="python -m larosa_analysis.comparison.achieved", description="Achieved sparsity by text."
    )
    parser.add_argument("records", type=Path, nargs="+", metavar="RECORDS.jsonl")
    parser.add_argument("--target", type=float, default=0.5, help="target sparsity, a fraction (default: %(default)s)")
    parser.add_argument("--methods", help="labels with commas (default: every method)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for achieved.csv and achieved.png")
    given = parser.parse_args(arguments)
    try:
        cells = read(given.records)
        if given.methods:
            cells = [cell for cell in cells if cell.method in given.methods.split(",")]
        text = table(cells, given.target)
        if given.out:
            given.out.mkdir(parents=True, exist_ok=True)
            write_atomically(given.out / "achieved.csv", csv_text(cells).encode())
            write_atomically(given.out / "achieved.png", png(draw(cells, given.target)))
    except (RecordsError, OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
