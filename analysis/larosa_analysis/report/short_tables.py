"""The two tables of README: quality and speed of a few methods and plans, without intervals."""

from __future__ import annotations

import re
from typing import Any

from larosa.records.quantization_label import NONE
from larosa_analysis.comparison.rows import Metric, Row, Rows
from larosa_analysis.records.conditions import device, every
from larosa_analysis.records.entry import Record, RecordsError
from larosa_analysis.speed.rows import SpeedRow, best_dense, distinct, speed_rows

METHODS = {
    "magnitude": "magnitude",
    "teal": "teal",
    "larosa/tuned (online, output_aware, per sublayer, int4, tuned)": "larosa/tuned, int4",
    "larosa/block_diagonal (online, output_aware, per sublayer, int4, block size 192, tuned)": (
        "larosa/block_diagonal, 192"
    ),
    "larosa/block_diagonal (online, output_aware, per sublayer, int4, block size 64, tuned)": (
        "larosa/block_diagonal, 64"
    ),
    "larosa/paper (absorbed, pca, per layer)": "larosa/paper",
    "wina": "wina",
}
"""Label -> name of the row, in their order."""
PLANS = (
    ("llama2-7b", NONE, "top-k", "none", "H100"),
    ("llama2-7b", NONE, "thresholds", "none", "H100"),
    ("llama2-7b", NONE, "top-k", "adapter", "H100"),
    ("llama2-7b", NONE, "top-k", "none", "H200"),
    ("llama3-8b", NONE, "top-k", "none", "H200"),
    ("llama3-8b", "w8", "top-k", "none", "H200"),
    ("llama3-8b", "w4", "top-k", "none", "H200"),
)
"""Model, weights, selector, overhead and GPU of each row."""
TARGETS = (0.0, 0.4, 0.5, 0.75)
"""Target sparsities that the speed table shows."""
_WEIGHTS = {NONE: "bf16", "w8": "8-bit", "w4": "4-bit"}
_SELECTORS = {"top-k": "Top-K", "thresholds": "thresholds"}
_OVERHEADS = {"none": "", "adapter": ", one bf16 adapter per layer"}


def quality(rows: Rows) -> str:
    """Ratios to magnitude Top-K's increase in perplexity, both metrics. Raises RecordsError if a method has no row."""
    metrics: tuple[Metric, ...] = ("weight sparsity", "bytes read")
    columns = [(target, metric) for metric in metrics for target in rows.targets]
    by_column = {column: {row.entry.label: row for row in rows.standing(*column)} for column in columns}
    lines = [["method", "overhead, %", *(_column(*column) for column in columns)]]
    lines.append(["---"] * len(lines[0]))
    for label, name in METHODS.items():
        at_sparsity = by_column[columns[0]].get(label)
        if at_sparsity is None:
            raise RecordsError(f"the table `quality` needs a record of {label} at {100 * rows.targets[0]:g} %")
        free = not at_sparsity.entry.overhead  # without overhead both metrics are one
        cells = [by_column[target, "weight sparsity" if free else metric].get(label) for target, metric in columns]
        lines.append([name, f"{100 * at_sparsity.entry.overhead:.1f}", *map(_ratio, cells)])
    return f"{_quality_conditions(rows)}\n\n{_markdown(lines)}"


def _column(target: float, metric: Metric) -> str:
    return f"{metric} {100 * (target if metric == 'weight sparsity' else 1 - target):.0f} %"


def _ratio(row: Row | None) -> str:
    return "-" if row is None else f"{row.compared.mean.value:.2f}"


def _quality_conditions(rows: Rows) -> str:
    dense, sparse = rows.dense.record, next(e.record for e in rows.entries if e is not rows.dense)
    calibration, records = sparse["data"]["calibration"], [entry.record for entry in rows.entries]
    tokens = every(f"{dense['data']['texts'][text]['tokens']:,}" for text in rows.texts)
    return (
        "Increase in perplexity over dense, divided by magnitude Top-K's (below 1 is better), mean of "
        f"{len(rows.texts)} texts. {_model(dense['config']['model']['name'])}, {dense['config']['model']['dtype']}; "
        f"calibrated on {calibration['tokens']:,} tokens of {calibration['text']}; evaluated on {tokens} tokens each "
        f"of {', '.join(rows.texts)}; best schedule per method; seed {every(r['config']['seed'] for r in records)}; "
        f"{every(_gpu(device(r)) for r in records)}, {every(r['created'][:10] for r in records)}."
    )


def speed(records: list[Record]) -> str:
    """Tokens/s of the fastest dense decoder, and speed-ups over it. Raises RecordsError if a plan has no record."""
    rows, used = speed_rows(records), []
    head = ["model, weights, selector", "GPU", "dense", *(f"{100 * target:g} %" for target in TARGETS)]
    lines = [head, ["---"] * len(head)]
    for plan in PLANS:
        matching = [row for row in rows if _plan(row) == plan]
        if not matching:
            raise RecordsError(f"the table `speed` needs a record decode-*.json of {', '.join(plan)}")
        first = matching[0]
        by_target = {row.sparsity: row for row in matching if row.line == first.line}
        dense = best_dense(first.record, first.context, first.new_tokens)
        speedups = [f"{by_target[t].speedup:.2f}x" if t in by_target else "-" for t in TARGETS]
        lines.append([_name(plan), plan[-1], f"{dense['tokens_per_s']:.0f}", *speedups])
        used.append(first)
    return f"{_speed_conditions(used)}\n\n{_markdown(lines)}"


def _plan(row: SpeedRow) -> tuple[str, str, str, str, str]:
    record = row.record
    weights = str(record.get("quantization", NONE))
    return record["model"], weights, row.selector, record["overhead"], _gpu(record["device"])


def _name(plan: tuple[str, str, str, str, str]) -> str:
    model, weights, selector, overhead, _ = plan
    return f"{_model(model)}, {_WEIGHTS[weights]}, {_SELECTORS[selector]}{_OVERHEADS[overhead]}"


def _speed_conditions(used: list[SpeedRow]) -> str:
    records: list[dict[str, Any]] = [row.record for row in used]
    days = sorted(record["date"][:10] for record in records)
    versions = distinct(f"torch {r['versions']['torch']}, Triton {r['versions']['triton']}" for r in records)
    return (
        "Tokens/s and speed-up over the fastest dense decoder of the same process, by target sparsity. Batch 1, "
        f"context {distinct(row.context for row in used)}, {distinct(row.new_tokens for row in used)} new tokens, "
        f"{distinct(r['weights'] for r in records)} weights at the true shape, no overhead unless stated; {versions}, "
        f"{' to '.join(dict.fromkeys((days[0], days[-1])))}."
    )


def _gpu(name: str) -> str:
    """`H100` of `NVIDIA H100 80GB HBM3`; another name as it is."""
    found = re.match(r"NVIDIA (\w+)", name)
    return found[1] if found else name


def _model(name: str) -> str:
    """A model's name in prose: `LLaMA2-7B` of llama2-7b."""
    name = re.sub(r"-(\d+(?:\.\d+)?)([bm])$", lambda size: f"-{size[1]}{size[2].upper()}", name)
    return name.replace("llama", "LLaMA").replace("smollm", "SmolLM")


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
