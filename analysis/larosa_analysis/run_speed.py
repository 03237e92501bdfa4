"""Timings inside measured runs (evaluation=speed) in the form of larosa.decode.benchmark's records.

One record a run: a speed-up is over the dense decoder of its own process, and levels, schedules and dates do not mix.
"""

from __future__ import annotations

from typing import Any

from larosa_analysis.conditions import device
from larosa_analysis.quantised import NONE
from larosa_analysis.records import Entry, Record


def caveat_of(speed: Record) -> str | None:
    """Why the times of a run's `speed` are no speed measurement; None if the kernels ran on a GPU.

    Records from before there was a caveat tell it by their backend.
    """
    if "caveat" in speed:
        return None if speed["caveat"] is None else str(speed["caveat"])
    return "torch reference, not a speed measurement" if speed.get("backend", "triton") != "triton" else None


def timings(runs: list[Record]) -> list[Record]:
    """One of each run whose kernels were timed behind a green gate, by model, method and level."""
    spoken = [(run, run["metrics"].get("speed") or {}) for run in runs]
    timed = [run for run, speed in spoken if speed.get("gate") and caveat_of(speed) is None]
    timed.sort(key=lambda run: (run["model"]["name"], run["label"], run["metrics"]["accounting"]["level_asked"]))
    return [_record(run) for run in timed]


def _record(run: Record) -> Record:
    versions, model, speed = run["versions"], run["model"], run["metrics"]["speed"]
    extras, schedule = run["metrics"]["accounting"]["extras"]["kind"], Entry.of(run).schedule
    own = run["config"].get("quantization") or {}
    label = run["label"].partition(" (")[0]
    told = {schedule: "uniform", extras: "none"}  # by itself
    named = [label, *(name for name, usual in told.items() if name != usual)]
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
        "dirty": run["git"]["dirty"],
        "dtype": model["dtype"],
        "extras": ", ".join(named),
        "quantization": own.get("weights", NONE),
        "head": own.get("head", NONE),
        "adapters": own.get("adapters", NONE),
        "selection_us": {},
        "gate": {run["identity"]: speed["gate"]},
        "rows": [_row(run, row) for row in speed["rows"]],
    }


def _row(run: Record, row: dict[str, Any]) -> dict[str, Any]:
    """The row, named by rule and level as the benchmark names it."""
    if row["kind"] != "sparse":
        return row
    rule = "limits" if run["config"]["method"]["rule"] == "threshold" else "top-k"
    return row | {"name": f"{rule} {100 * run['metrics']['accounting']['level_asked']:g} %"}
