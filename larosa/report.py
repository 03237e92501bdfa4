"""One table over the records of a run: printed, and written as Markdown and JSON beside the main record."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from larosa.results import Record
from larosa.store import write_atomically
from larosa_analysis import quantised
from larosa_analysis.run_speed import caveat_of


def comparison(records: dict[str, Record]) -> list[dict[str, Any]]:
    """A row a method, values as numbers. Levels and shares in percent, perplexities as they are."""
    dense = records.get("dense")
    rows = []
    for name, record in records.items():
        metrics, counted = record["metrics"], record["metrics"]["accounting"]
        measured = list(metrics["measured_sparsity"].values())
        row: dict[str, Any] = {
            "method": name,
            "asked %": _percent(counted["level_asked"]),
            "byte-weighted %": _percent(counted["level_byte_weighted"]),
            "measured %": _percent(_mean([m["byte_weighted_mean"] for m in measured])),
            "extras %": _percent(counted["extras_share"]),
            "net bytes %": _percent(counted["net_bytes_share"]),
        }
        if "speed" in metrics:
            timed = metrics["speed"]["summary"].get("sparse", metrics["speed"]["summary"]["dense"])
            doubt = f" ({caveat})" if (caveat := caveat_of(metrics["speed"])) else ""
            row |= {f"tokens/s{doubt}": timed["tokens_per_s"], f"speed-up{doubt}": timed["speedup"]}
        for text, found in metrics["perplexity"].items():
            row[f"ppl {text}"] = found["perplexity"]
            if dense and text in dense["metrics"]["perplexity"]:
                row[f"increase {text}"] = found["perplexity"] - dense["metrics"]["perplexity"][text]["perplexity"]
        for task, score in metrics["zero_shot"].items():
            row[f"{task} {score['metric']} %"] = _percent(score["value"])
            row[f"{task} s.e."] = _percent(score["standard_error"])
        rows.append(row)
    return rows


def _percent(value: float | None) -> float | None:
    return None if value is None else 100.0 * value


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def cells(row: dict[str, Any], columns: list[str]) -> list[str]:
    """A row as text; a standard error stands behind its score."""
    out = []
    for column in columns:
        value = row.get(column)
        if value is None:
            out.append("-")
        elif isinstance(value, str):
            out.append(value)
        elif not math.isfinite(value):
            out.append("no number")
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
    lines += ["| " + " | ".join(cells(row, columns)) + " |" for row in rows]
    write_atomically(folder / "comparison.md", ("\n".join(lines) + "\n").encode())
    write_atomically(folder / "comparison.json", json.dumps(rows, indent=1).encode())


def show(records: dict[str, Record], rows: list[dict[str, Any]]) -> None:
    """Print the comparison as one column a method, then what a reader asks next."""
    console = Console()
    columns = _columns(rows)
    table = Table("", *(row["method"] for row in rows), title=_conditions(list(records.values())[-1]))
    by_row = [cells(row, columns) for row in rows]
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
    examples = f"; {zero_shot['examples'] or 'all'} examples a zero-shot task" if zero_shot["tasks"] else ""
    weights = quantised.name(config)
    rounded = "" if weights == quantised.NONE else f", quantised ({weights})"
    return (
        f"{config['model']['name']}, {config['model']['dtype']}{rounded}; {calibrated}evaluated on {texts or 'no text'}"
        f"{examples}; device {record['device']}"
    )


def _show_details(console: Console, name: str, record: Record) -> None:
    metrics = record["metrics"]
    seconds = " ".join(f"{stage} {entry['wall_s']:.0f}s" for stage, entry in record["stages"].items())
    check = metrics["invariance"]
    console.print(
        f"[bold]{name}[/]: level-0 logits error {check['relative_logits_error']:.1e} (bound {check['bound']:.0e}); "
        f"{metrics['accounting']['extras']['products']} extra products, {metrics['accounting']['extras']['kind']}; "
        f"{seconds}"
    )
    for task, score in metrics["zero_shot"].items():
        if score.get("left_out"):
            console.print(
                f"{task}: {score['left_out']} of {score['population']} examples left out, whose articles were "
                "calibrated on"
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
            f"{100 * (_mean(metrics['accounting']['level_planned'][site]) or 0):.1f}",
            " / ".join("-" if q is None else f"{q[middle]:.3f}" for q in chosen),
            f"{_mean([e for e in errors['site_error'][site] if e is not None]) or 0:.3f}",
            f"{_mean(errors['site_error_theory'][site]) or 0:.3f}",
        )
    console.print(table)
