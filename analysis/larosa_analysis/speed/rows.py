"""Rows of the decode benchmark: one timed plan at one target sparsity each.

A speed-up is over the fastest dense decoder of the same process; beside it stands the one that the bytes alone allow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from larosa.records.quantization_label import NONE
from larosa_analysis.records.entry import Record

OVERHEADS = {
    "none": "no overhead",
    "adapter": "one bf16 adapter per layer",
    "adapters": "two bf16 adapters per layer",
    "int8": "two int8 transforms per layer",
    "transform": "two bf16 transforms per layer",
}
SELECTORS = {"top-k": "Top-K", "thresholds": "thresholds"}


@dataclass(frozen=True)
class SpeedRow:
    """One timed plan; `sparsity` is the target, a fraction, `ideal` the speed-up that the bytes read allow."""

    record: Record
    selector: str
    sparsity: float
    context: int
    new_tokens: int
    ms: float
    tokens_per_s: float
    speedup: float
    ideal: float
    share_of_peak: float | None

    @property
    def line(self) -> tuple[int, str, int, int]:
        """What stands in one line: a record, a selector, and lengths."""
        return id(self.record), self.selector, self.context, self.new_tokens

    @property
    def label(self) -> str:
        """Model, overhead and selector."""
        overhead = OVERHEADS.get(self.record["overhead"], self.record["overhead"])
        return f"{self.record['model']}, {overhead}{quantised(self.record)}, {SELECTORS[self.selector]}"


def quantised(record: Record) -> str:
    """What is quantised, for a label; empty where nothing is, and for records from before there was any."""
    parts = {"weights": record.get("quantization", NONE)} | {key: record.get(key, NONE) for key in ("head", "adapters")}
    return "".join(f", {scheme} {part}" for part, scheme in parts.items() if scheme != NONE)


def best_dense(record: Record, context: int, new_tokens: int) -> dict[str, Any]:
    """The fastest dense row at these lengths."""
    dense = [row for row in record["rows"] if row["kind"] == "dense" and _lengths(row) == (context, new_tokens)]
    fastest: dict[str, Any] = min(dense, key=lambda row: float(row["ms_per_token"]["p50"]))
    return fastest


def _lengths(row: dict[str, Any]) -> tuple[int, int]:
    return int(row["context"]), int(row["new_tokens"])


def speed_rows(records: list[Record]) -> list[SpeedRow]:
    """Every sparse row, records in their order, then selector, then sparsity."""
    rows = [_row(record, row) for record in records for row in record["rows"] if row["kind"] == "sparse"]
    order = {id(record): place for place, record in enumerate(records)}
    names = list(SELECTORS)
    return sorted(
        rows,
        key=lambda r: (order[id(r.record)], r.context, r.new_tokens, names.index(r.selector), r.sparsity),
    )


def _row(record: Record, row: dict[str, Any]) -> SpeedRow:
    selector, percent = row["name"].split(" ")[:2]
    dense = best_dense(record, *_lengths(row))
    ideal = dense["read_bytes"]["total"] / row["read_bytes"]["total"]
    return SpeedRow(
        record, selector, float(percent) / 100, *_lengths(row), row["ms_per_token"]["p50"], row["tokens_per_s"],
        row["speedup"], ideal, row["share_of_peak"],
    )  # fmt: skip


def machine(records: list[Record]) -> str:
    """GPU, precision, weights, versions and dates that the records share."""
    versions = distinct(f"torch {r['versions']['torch']}, Triton {r['versions']['triton']}" for r in records)
    weights = f"{distinct(r['weights'] for r in records)} weights at the true shapes"
    when = f"driver {distinct(r['driver'] for r in records)}, {distinct(r['date'][:10] for r in records)}"
    gpus, dtypes = distinct(r["device"] for r in records), distinct(r["dtype"] for r in records)
    return f"{gpus}, {dtypes}, batch 1, {weights}; {versions}, {when}"


def distinct(values: Iterable[Any]) -> str:
    """The distinct values in their order."""
    return ", ".join(dict.fromkeys(str(value) for value in values))
