"""The speed table as Markdown and CSV."""

from __future__ import annotations

import csv
import io

from larosa.records.quantization_label import NONE
from larosa_analysis.records.entry import Record
from larosa_analysis.speed.rows import SpeedRow, best_dense, machine, quantised, speed_rows

COLUMNS = (
    "model", "overhead", "quantised", "selector", "target_sparsity", "context", "new_tokens", "ms_p50", "tokens_per_s",
    "speedup", "ideal", "share_of_peak", "gpu", "date",
)  # fmt: skip


def table(records: list[Record]) -> str:
    """Markdown: a line per model, overhead and selector; conditions above it."""
    rows = speed_rows(records)
    targets = sorted({row.sparsity for row in rows})
    lines = [
        _conditions(records),
        "",
        "| | context + new | dense | " + " | ".join(f"{100 * target:g} %" for target in targets) + " |",
        "|---|---|---|" + "---|" * len(targets),
    ]
    several_gpus = len({record["device"] for record in records}) > 1
    for key in dict.fromkeys(row.line for row in rows):
        by_target = {row.sparsity: row for row in rows if row.line == key}
        first = next(iter(by_target.values()))
        dense = best_dense(first.record, first.context, first.new_tokens)
        shown = [_cell(by_target[target]) if target in by_target else "-" for target in targets]
        lengths, tokens_per_s = f"{first.context} + {first.new_tokens}", f"{dense['tokens_per_s']:.0f}"
        where = f", {first.record['device']}" if several_gpus else ""
        lines.append(f"| {first.label}{where} | {lengths} | {tokens_per_s} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _cell(row: SpeedRow) -> str:
    return f"{row.tokens_per_s:.0f} ({row.speedup:.2f}x of {row.ideal:.2f}x)"


def _conditions(records: list[Record]) -> str:
    unquantised = [record for record in records if record.get("quantization", NONE) == NONE]
    selection = [us for r in unquantised for by_name in r["selection_us"].values() for us in by_name.values()]
    text = (
        f"Tokens/s on {machine(records)}. Columns are the target sparsity of every site. `dense` is the fastest of "
        "cuBLAS in three layouts and of these kernels, in the same process, unquantised. In brackets: the speed-up "
        "over it, of the speed-up that the bytes read allow. Each decoder passed its parity check before it was timed."
    )
    if selection:
        text += f" With unquantised weights one exact selection costs {min(selection):.1f} to {max(selection):.1f} us."
    return text


def csv_text(records: list[Record]) -> str:
    """Every sparse row."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in speed_rows(records):
        names = [row.record["model"], row.record["overhead"], quantised(row.record).removeprefix(", ") or "none"]
        numbers = [row.sparsity, row.context, row.new_tokens, row.ms, row.tokens_per_s, row.speedup, row.ideal]
        writer.writerow([*names, row.selector, *numbers, row.share_of_peak, row.record["device"], row.record["date"]])
    return out.getvalue()
