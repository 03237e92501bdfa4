"""One table over the records of a run: printed, and written as Markdown and JSON beside the main record."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from larosa.data.tensor_store import write_atomically
from larosa.experiment.results import Record
from larosa.records import quantization_label
from larosa.records.caveat import caveat_of


def comparison(records: dict[str, Record]) -> list[dict[str, Any]]:
    """A row per method, values as numbers: sparsities and fractions in percent, perplexities as they are."""
    dense = records.get("dense")
    rows = []
    for name, record in records.items():
        metrics, counted = record["metrics"], record["metrics"]["accounting"]
        achieved = list(metrics["achieved_sparsity"].values())
        row: dict[str, Any] = {
            "method": name,
            "target %": _percent(counted["target_sparsity"]),
            "planned %": _percent(counted["weight_sparsity"]),
            "achieved %": _percent(_mean([m["weight_sparsity_mean"] for m in achieved])),
            "overhead %": _percent(counted["overhead_fraction"]),
            "weight bytes read %": _percent(counted["read_fraction"]),
        }
        if "speed" in metrics:
            timed = metrics["speed"]["summary"].get("sparse", metrics["speed"]["summary"]["dense"])
            suffix = f" ({caveat})" if (caveat := caveat_of(metrics["speed"])) else ""
            row |= {f"tokens/s{suffix}": timed["tokens_per_s"], f"speed-up{suffix}": timed["speedup"]}
        for text, measured in metrics["perplexity"].items():
            row[f"ppl {text}"] = measured["perplexity"]
            if dense and text in dense["metrics"]["perplexity"]:
                row[f"increase {text}"] = measured["perplexity"] - dense["metrics"]["perplexity"][text]["perplexity"]
        for task, score in metrics["zero_shot"].items():
            row[f"{task} {score['metric']} %"] = _percent(score["value"])
            row[f"{task} s.e."] = _percent(score["standard_error"])
        rows.append(row)
    return rows


def _percent(value: float | None) -> float | None:
    return None if value is None else 100.0 * value


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def runs(row: dict[str, Any], columns: list[str]) -> list[str]:
    """A row as text; a standard error stands behind its score."""
    out = []
    for column in columns:
        value = row.get(column)
        if value is None:
            out.append("-")
        elif isinstance(value, str):
            out.append(value)
        elif not math.isfinite(value):
            out.append("NaN")
        else:
            digits = 3 if column.startswith(("ppl", "increase", "speed-up")) else 1
            error = row.get(f"{column.split()[0]} s.e.")
            out.append(f"{value:.{digits}f}" + (f" ± {error:.1f}" if error is not None else ""))
    return out


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    columns = dict.fromkeys(key for row in rows for key in row)
    return [column for column in columns if not column.endswith("s.e.")]


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """`comparison.json` (numbers) and `comparison.md` in the main record's folder."""
    columns = _columns(rows)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(runs(row, columns)) + " |" for row in rows]
    write_atomically(folder / "comparison.md", ("\n".join(lines) + "\n").encode())
    write_atomically(folder / "comparison.json", json.dumps(rows, indent=1).encode())


def show(records: dict[str, Record], rows: list[dict[str, Any]]) -> None:
    """Print the comparison as one column per method, then the details of each."""
    console = Console()
    columns = _columns(rows)
    table = Table("", *(row["method"] for row in rows), title=_conditions(list(records.values())[-1]))
    by_row = [runs(row, columns) for row in rows]
    for i, column in enumerate(columns[1:], start=1):
        table.add_row(column, *(texts[i] for texts in by_row))
    console.print(table)
    for name, record in records.items():
        _show_details(console, name, record)


def _conditions(record: Record) -> str:
    config, data = record["config"], record["data"]
    texts = ", ".join(f"{text['tokens']} tokens of {name}" for name, text in data["texts"].items())
    calibration, zero_shot = data.get("calibration"), config["evaluation"]["zero_shot"]
    calibrated = f"calibrated on {calibration['tokens']} tokens of {calibration['text']}; " if calibration else ""
    examples = f"; {zero_shot['examples'] or 'all'} examples per zero-shot task" if zero_shot["tasks"] else ""
    weights = quantization_label.name(config)
    rounded = "" if weights == quantization_label.NONE else f", quantised ({weights})"
    return (
        f"{config['model']['name']}, {config['model']['dtype']}{rounded}; {calibrated}evaluated on {texts or 'no text'}"
        f"{examples}; device {record['device']}"
    )


def _show_details(console: Console, name: str, record: Record) -> None:
    metrics = record["metrics"]
    seconds = " ".join(f"{stage} {entry['wall_s']:.0f}s" for stage, entry in record["stages"].items())
    check, overhead = metrics["parity"], metrics["accounting"]["overhead"]
    console.print(
        f"[bold]{name}[/]: level-0 logits error {check['relative_logits_error']:.1e} (bound {check['bound']:.0e}); "
        f"overhead: {overhead['products']} products, {overhead['kind']}; "
        f"{seconds}"
    )
    for task, score in metrics["zero_shot"].items():
        if score.get("excluded"):
            console.print(
                f"{task}: {score['excluded']} of {score['num_available']} examples excluded, as the model was "
                "calibrated on their articles"
            )
    errors = metrics.get("errors")
    if not errors:
        return
    table = Table("site", "level %", "threshold, median: first / middle / last layer", "output error", "theory A.1")
    middle = errors["threshold_quantiles"].index(0.5)
    for site, layers in errors["thresholds"].items():
        chosen = [layers[0], layers[len(layers) // 2], layers[-1]]
        table.add_row(
            site,
            f"{100 * (_mean(metrics['accounting']['planned_sparsity'][site]) or 0):.1f}",
            " / ".join("-" if q is None else f"{q[middle]:.3f}" for q in chosen),
            f"{_mean([e for e in errors['site_error'][site] if e is not None]) or 0:.3f}",
            f"{_mean(errors['site_error_theory'][site]) or 0:.3f}",
        )
    console.print(table)
