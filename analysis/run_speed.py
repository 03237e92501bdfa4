"""Timings inside measured runs (evaluation=speed) in the form of kernels/benchmarks/decode.py's records.

One record for every model, method and machine; its rows come from one process a level, so that a speed-up is over the
dense decoder of its own process.
"""

from __future__ import annotations

from typing import Any

from analysis.conditions import device
from analysis.records import Record


def timings(runs: list[Record]) -> list[Record]:
    """Of the runs that were timed behind a green gate, in their order."""
    found: dict[tuple[str, ...], Record] = {}
    for run in runs:
        speed = run["metrics"].get("speed")
        if not speed or not speed["gate"]:
            continue
        made = _record(run)
        key = tuple(str(made[name]) for name in ("model", "weights", "extras", "device", "dtype", "versions"))
        own = found.setdefault(key, made)
        own["rows"] = [*own["rows"], *(_row(run, row) for row in speed["rows"])]
        own["gate"][run["identity"]] = speed["gate"]
    return list(found.values())


def _record(run: Record) -> Record:
    versions, model = run["versions"], run["model"]
    extras = run["metrics"]["accounting"]["extras"]["kind"]
    label = run["label"].partition(" (")[0]
    return {
        "schema": 1,
        "kind": "decode",
        "model": model["name"],
        "weights": "random" if model["source"] == "random" else "true",
        "device": device(run),
        "driver": "not recorded",
        "versions": {name: versions.get(name, "-") for name in ("torch", "triton")},
        "date": run["created"],
        "commit": run["git"]["commit"],
        "dtype": model["dtype"],
        "extras": label if extras == "none" else f"{label}, {extras}",
        "selection_us": {},
        "gate": {},
        "rows": [],
    }


def _row(run: Record, row: dict[str, Any]) -> dict[str, Any]:
    """The row, named by rule and level as the benchmark names it."""
    if row["kind"] != "sparse":
        return row
    rule = "limits" if run["config"]["method"]["rule"] == "threshold" else "top-k"
    return row | {"name": f"{rule} {100 * run['metrics']['accounting']['level_asked']:g} %"}
