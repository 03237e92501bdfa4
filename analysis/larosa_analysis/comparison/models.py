"""Methods on several models side by side: increase in perplexity over magnitude Top-K's, over blocks and seeds.

    python -m larosa_analysis.comparison.models RECORDS.jsonl [...] [--calibration NAME] [--schedules official]

The records of a model are split by calibration text and seed. A group also holds the model's records that read no
calibration (dense, magnitude Top-K, WINA), so that these are measured once. One row is one method; its value is the
mean over seeds. A resample draws seeds with replacement, then blocks, the same blocks for every seed.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from larosa_analysis.comparison.markdown import interval, percent
from larosa_analysis.comparison.rows import Metric, Row, Rows, build
from larosa_analysis.records.entry import (
    Entry,
    RecordsError,
    distinct,
    read_lines,
    reads_calibration,
    require_comparable,
)
from larosa_analysis.stats.bootstrap import SEED, Array, Estimate, Increases, estimate
from larosa_analysis.tables.names import short_names

METRICS: tuple[Metric, ...] = ("weight sparsity", "bytes read")


@dataclass(frozen=True)
class Condition:
    """What a group of comparable records shares."""

    model: str
    calibration: str
    seed: int


Groups = dict[Condition, Rows]


def groups(paths: Iterable[Path], texts: list[str] | None = None, schedules: list[str] | None = None) -> Groups:
    """The rows of every model, calibration text and seed. Raises RecordsError where records do not compare.

    texts: default, those of each model's dense record. schedules: those that take part, where not every method was
    measured at every schedule; default all, of which each method's best counts.
    """
    by_model: dict[str, list[Entry]] = defaultdict(list)
    for path in paths:
        for record in read_lines(path):
            entry = Entry.of(record)
            if schedules is None or entry.family == "dense" or entry.schedule in schedules:
                by_model[record["model"]["name"]].append(entry)
    by_condition: Groups = {}
    for model, entries in by_model.items():
        shared = [entry for entry in entries if not reads_calibration(entry.record["config"])]
        calibrated: dict[Condition, list[Entry]] = defaultdict(list)
        for entry in entries:
            config = entry.record["config"]
            if entry not in shared:
                name = entry.record["data"]["calibration"]["text"]
                calibrated[Condition(model, name, config["seed"])].append(entry)
        dense = next((entry for entry in shared if entry.family == "dense"), None)
        if dense is None:
            raise RecordsError(f"{model}: no dense record; `larosa compare` measures it first")
        measured = texts or sorted(dense.nll)
        for condition, group in calibrated.items():
            comparable = [entry.only(measured) for entry in [*shared, *group]]
            require_comparable(comparable)
            by_condition[condition] = build(distinct(comparable), measured, None)
    return by_condition


@dataclass(frozen=True)
class Pooled:
    """One method at one target, over seeds."""

    rows: tuple[Row, ...]
    """One per seed."""
    mean: Estimate
    """The ratio, mean over texts and seeds."""
    by_text: dict[str, float]

    @property
    def overhead(self) -> float:
        """Overhead as a fraction of the projections' bytes."""
        return self.rows[0].entry.overhead


def pooled(by_condition: Groups, model: str, calibration: str, target: float, metric: Metric) -> dict[str, Pooled]:
    """Label -> the method over the seeds of a calibration text, at equal weight sparsity or at equal bytes read.

    Without overhead a method's row at equal weight sparsity counts as both.
    """
    seeds: dict[str, list[tuple[Rows, Row]]] = defaultdict(list)
    for condition, rows in by_condition.items():
        if (condition.model, condition.calibration) != (model, calibration):
            continue
        standing = {row.entry.label: row for row in rows.standing(target, "weight sparsity")}
        if metric == "bytes read":
            standing = {label: row for label, row in standing.items() if not row.entry.overhead}
            standing |= {row.entry.label: row for row in rows.standing(target, "bytes read")}
        for label, row in standing.items():
            seeds[label].append((rows, row))
    return {label: _pool(of_seeds) for label, of_seeds in seeds.items()}


def _pool(seeds: list[tuple[Rows, Row]]) -> Pooled:
    ratios = np.stack([_ratios(rows.increases, row.entry, rows.reference[row.target]) for rows, row in seeds])
    draw = np.random.default_rng(SEED).integers(len(seeds), size=(ratios.shape[1] - 1, len(seeds)))
    resampled = np.take_along_axis(ratios[:, 1:].T, draw, axis=1).mean(1)
    texts = seeds[0][0].texts
    by_text = {t: float(np.mean([row.compared.by_text[t].value for _, row in seeds])) for t in texts}
    values = np.concatenate([[ratios[:, 0].mean()], resampled])
    return Pooled(tuple(row for _, row in seeds), estimate(values, bool(np.isfinite(values).all())), by_text)


def _ratios(increases: Increases, entry: Entry, reference: Entry) -> Array:
    """[1 + resamples], mean over texts."""
    method, magnitude = increases.of(entry), increases.of(reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios: Array = np.mean(
            [method[text] / np.where(magnitude[text] > 0, magnitude[text], np.nan) for text in method], axis=0
        )
    return ratios


def table(
    by_condition: Groups, calibration: str, targets: list[float], metric: Metric, labels: list[str] | None = None
) -> str:
    """Markdown: a line per method, a column per model and target. Order: mean over the columns, missing cells last."""
    models = list(dict.fromkeys(condition.model for condition in by_condition if condition.calibration == calibration))
    if not models:
        known = ", ".join(sorted({condition.calibration for condition in by_condition}))
        raise RecordsError(f"no record is calibrated on {calibration!r}; there is {known}")
    columns = [(model, target) for model in models for target in targets]
    cells = {column: pooled(by_condition, column[0], calibration, column[1], metric) for column in columns}
    known_labels = list(dict.fromkeys(label for by_label in cells.values() for label in by_label))
    chosen = known_labels if labels is None else [label for label in labels if label in known_labels]
    if labels is None:
        chosen = sorted(chosen, key=lambda label: _order([by_label.get(label) for by_label in cells.values()]))
    names = short_names(chosen)
    head = ["method", *(f"{model} overhead, %" for model in models)]
    head += [f"{model}, {percent(target, 0)} %" for model, target in columns]
    lines = [head, ["---"] * len(head)]
    for label in chosen:
        overheads = []
        for model in models:
            method = next((cells[c][label] for c in columns if c[0] == model and label in cells[c]), None)
            overheads.append("-" if method is None else percent(method.overhead, 2))
        shown = [interval(cells[c][label].mean) if label in cells[c] else "-" for c in columns]
        lines.append([names[label], *overheads, *shown])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def both(by_condition: Groups) -> str:
    """Markdown: all methods at equal weight sparsity, then at equal bytes read, for every calibration text."""
    parts = []
    for calibration in dict.fromkeys(condition.calibration for condition in by_condition):
        targets = sorted({t for c, rows in by_condition.items() if c.calibration == calibration for t in rows.targets})
        for metric in METRICS:
            head = f"**Calibrated on {calibration}, equal {metric}**"
            parts.append(f"{head}\n\n{table(by_condition, calibration, targets, metric)}")
    return "\n\n".join(parts)


def _order(cells: list[Pooled | None]) -> tuple[int, float]:
    values = [cell.mean.value for cell in cells if cell is not None]
    return len(cells) - len(values), float(np.mean(values))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status, 2 if no table can be made."""
    parser = argparse.ArgumentParser(
        prog="python -m larosa_analysis.comparison.models", description="Compare methods on several models."
    )
    parser.add_argument("records", type=Path, nargs="+", metavar="RECORDS.jsonl")
    parser.add_argument("--calibration", default="mixture", help="name of the calibration text (default: %(default)s)")
    parser.add_argument("--targets", default="0.4,0.5", help="fractions with commas (default: %(default)s)")
    parser.add_argument("--texts", help="names with commas (default: all)")
    parser.add_argument("--schedules", help="names with commas (default: all, each method at its best)")
    given = parser.parse_args(arguments)
    try:
        listed = (names.split(",") if names else None for names in (given.texts, given.schedules))
        by_condition = groups(given.records, *listed)
        targets = [float(target) for target in given.targets.split(",")]
        for metric in METRICS:
            print(f"Equal {metric}:\n\n{table(by_condition, given.calibration, targets, metric)}\n")
    except (RecordsError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
