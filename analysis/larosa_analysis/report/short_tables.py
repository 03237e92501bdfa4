"""The two tables of README: quality and speed of a few methods and plans, without intervals."""

from __future__ import annotations

import re
from typing import Any

from matplotlib.figure import Figure

from larosa.records.quantization_label import NONE
from larosa_analysis.comparison.markdown import interval
from larosa_analysis.comparison.models import Groups, pooled
from larosa_analysis.comparison.models_figure import draw
from larosa_analysis.records.conditions import device, every
from larosa_analysis.records.entry import Record, RecordsError
from larosa_analysis.speed.rows import SpeedRow, best_dense, distinct, speed_rows

METHODS = {
    "larosa/block_diagonal (online, output_aware, per sublayer, int4, block size 64, tuned, column norms)": (
        "larosa/block_diagonal, column norms"
    ),
    "larosa/learned (absorbed, learned, per model, column norms)": "larosa/learned, one Q for the model, column norms",
    "magnitude": "magnitude Top-K",
    "wina": "wina",
    "teal": "teal",
    "larosa/paper (absorbed, pca, per layer, column norms)": "larosa/paper, column norms",
    "larosa/paper (absorbed, pca, per layer)": "larosa/paper",
}
"""Label -> name of the row, in their order."""
QUALITY_TARGETS = (0.4, 0.5)
CALIBRATION = "mixture"
"""Of the table `quality`."""
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


def quality(by_condition: Groups) -> str:
    """Ratios to magnitude Top-K's increase in perplexity at equal weight bytes read, models side by side."""
    models = _models(by_condition)
    columns = [(model, target) for model in models for target in QUALITY_TARGETS]
    cells = {column: pooled(by_condition, column[0], CALIBRATION, column[1], "bytes read") for column in columns}
    lines = [["method", "overhead, %", *(f"{_model(m)}, {100 * (1 - t):.0f} %" for m, t in columns)]]
    lines.append(["---"] * len(lines[0]))
    for label, name in METHODS.items():
        rows = [cells[column].get(label) for column in columns]
        overheads = [100 * row.overhead for row in rows if row is not None]
        if not overheads:
            raise RecordsError(f"the table `quality` needs a record of {label}")
        spread = " to ".join(dict.fromkeys(f"{value:.1f}" for value in (min(overheads), max(overheads))))
        lines.append([name, spread, *("-" if row is None else interval(row.mean) for row in rows)])
    return f"{_quality_conditions(by_condition)}\n\n{_markdown(lines)}"


def quality_figure(by_condition: Groups) -> Figure:
    """The table `quality` as a figure."""
    panels = {
        _model(model): {t: pooled(by_condition, model, CALIBRATION, t, "bytes read") for t in QUALITY_TARGETS}
        for model in _models(by_condition)
    }
    return draw(panels, METHODS)


def _models(by_condition: Groups) -> list[str]:
    """Smallest first, by what the dense model reads per token."""
    size = {c.model: rows.dense.record["metrics"]["accounting"]["projection_bytes"] for c, rows in by_condition.items()}
    return sorted(size, key=lambda model: int(size[model]))


def _quality_conditions(by_condition: Groups) -> str:
    rows = list(by_condition.values())
    entries = [entry for group in rows for entry in group.entries]
    records = [entry.record for entry in entries]
    calibrated = every(f"{r['data']['calibration']['tokens']:,}" for r in records if "calibration" in r["data"])
    texts = rows[0].texts
    tokens = every(f"{r['data']['texts'][text]['tokens']:,}" for r in records for text in texts)
    seeds = ", ".join(map(str, sorted({condition.seed for condition in by_condition})))
    return (
        "Increase in perplexity over dense, divided by magnitude Top-K's (below 1 is better), at equal weight bytes "
        "read, overhead included; in brackets 95 % over evaluation blocks. "
        f"Mean of {len(texts)} texts, {tokens} tokens each: {', '.join(texts)}. "
        f"Calibrated on {calibrated} other tokens, a {CALIBRATION} of prose, mathematics and code. "
        "Schedule official (0.8 / 1.2), or a searched one where it was measured and is better; "
        f"seed {seeds}; {every(r['config']['model']['dtype'] for r in records)}, "
        f"products in {every(_products(r) for r in records)}; "
        f"{every(_gpu(device(r)) for r in records)}, {every(r['created'][:10] for r in records)}."
    )


def _products(record: Record) -> str:
    """The precision of float32 products, by name."""
    return "TF32" if record["config"]["evaluation"].get("float32_matmul") == "tf32" else "float32"


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
    match = re.match(r"NVIDIA (\w+)", name)
    return match[1] if match else name


def _model(name: str) -> str:
    """A model's name in prose: `LLaMA2-7B` of llama2-7b."""
    name = re.sub(r"-(\d+(?:\.\d+)?)([bm])$", lambda size: f"-{size[1]}{size[2].upper()}", name)
    return name.replace("llama", "LLaMA").replace("smollm", "SmolLM").replace("qwen2.5-coder", "Qwen2.5-Coder")


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
