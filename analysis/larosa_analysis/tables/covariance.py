"""Cosine of calibration sets' second moments, mean over layers: a block beside Table 8's rows."""

from __future__ import annotations

from larosa_analysis.records.entry import Record
from larosa_analysis.tables.cells import Block, Cell


def block(record: Record) -> Block:
    """Set against set."""
    values = record["values"]
    sets: list[str] = values["sets"]
    rows = [
        [Cell(name), *(Cell(value=float(v), digits=4) for v in cosines)]
        for name, cosines in zip(sets, values["cosine"], strict=True)
    ]
    title = f"{record['model']}: cosine of the second moments at {values['site']}, mean over layers"
    commit = (record.get("git") or {}).get("commit") or "not recorded"
    return Block(title, ("calibration set", *sets), rows, f"Commit {commit[:12]}, {record['created'][:10]}.")
