"""Table 3: tokens per second, ours below the printed ones of each model; another GPU, so never one row."""

from __future__ import annotations

from larosa_analysis import paper
from larosa_analysis.paper import Printed
from larosa_analysis.records.conditions import every
from larosa_analysis.records.store import RecordStore
from larosa_analysis.speed.rows import SpeedRow, best_dense, machine, speed_rows
from larosa_analysis.tables.cells import Block, Cell, Footnotes, Missing, Table
from larosa_analysis.tables.commands import command

NUMBER = 3
_COLUMNS = ("source", "GPU", "method", "sparsity, %", "context + new", "tokens/s", "speed-up", "by bytes alone")
_READING = (
    "Batch 1. A speed-up is over dense decoding on the same machine, ours over the fastest of several dense decoders "
    "in the same process. *By bytes alone*: the speed-up if time were proportional to bytes read. The paper states 128 "
    "new tokens, but neither dtype, software nor its dense decoder; its 70B models run on two GPUs."
)


def build(store: RecordStore) -> Table:
    """The table; ours at every length that was timed."""
    rows, timed = paper.rows("table03_speed"), speed_rows(store.timings)
    notes = Footnotes()
    for remark in paper.remarks(NUMBER):
        notes.number(remark)
    names = list(dict.fromkeys([*(c.record["model"] for c in timed), *(row["model"] for row in rows)]))
    blocks, missing = [], []
    for name in names:
        cells = [cell for cell in timed if cell.record["model"] == name]
        printed = [_printed(row, notes) for row in rows if row["model"] == name]
        records = [record for record in store.timings if record["model"] == name]
        commits = every(str(record["commit"])[:12] + " (changed)" * bool(record.get("dirty")) for record in records)
        caption = f"Measured on {machine(records)}, commit {commits}." if records else ""
        blocks.append(Block(name, _COLUMNS, [*_ours(cells), *printed], caption, folded=not cells))
        if not cells:
            missing.append(Missing(name, len(printed), command(f"table{NUMBER:02d}", name)))
    return Table(NUMBER, "Decoding speed", blocks, _READING, notes.texts, missing)


def _printed(row: Printed, notes: Footnotes) -> list[Cell]:
    marks = {key: tuple(notes.number(t) for c, t in paper.notes(NUMBER, row) if c == key) for key in ("", "speedup")}
    gpu = row["gpu"] if row["tensor_parallel"] == "1" else f"{row['tensor_parallel']} x {row['gpu']}"
    start = [Cell("printed"), Cell(gpu), Cell(row["method"]), Cell(f"{100 * float(row['sparsity']):g}")]
    shown = [Cell(row["tokens_per_s"], notes=marks[""]), Cell(row["speedup"], notes=marks["speedup"])]
    return [*start, Cell("- + 128"), *shown, Cell()]


def _ours(timed: list[SpeedRow]) -> list[list[Cell]]:
    rows, seen = [], set()
    for line in dict.fromkeys(cell.line for cell in timed):
        cells = [cell for cell in timed if cell.line == line]
        dense = best_dense(cells[0].record, cells[0].context, cells[0].new_tokens)
        lengths = (line[0], *line[2:])
        if lengths not in seen:  # one dense decoder serves both selectors
            rows.append(_row(cells[0], "dense", 0.0, dense["tokens_per_s"], 1.0, 1.0))
        seen.add(lengths)
        for cell in cells:
            method = cell.label.removeprefix(f"{cell.record['model']}, ")
            rows.append(_row(cell, method, cell.sparsity, cell.tokens_per_s, cell.speedup, cell.ideal))
    return rows


def _row(cell: SpeedRow, method: str, level: float, tokens_per_s: float, speedup: float, ideal: float) -> list[Cell]:
    lengths = Cell(f"{cell.context} + {cell.new_tokens}")
    start = [Cell("ours"), Cell(cell.record["device"]), Cell(method), Cell(f"{100 * level:g}"), lengths]
    return [*start, Cell(value=tokens_per_s, digits=1), Cell(value=speedup), Cell(value=ideal)]
