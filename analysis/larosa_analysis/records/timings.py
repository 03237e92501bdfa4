"""Timings: records of larosa.decode.benchmark, and those inside measured runs (evaluation=speed) in the same form.

Of a run one record: a speed-up is over the dense decoder of its own process, and targets, schedules and dates do not
mix.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from larosa.records import checksum
from larosa.records.caveat import caveat_of
from larosa.records.method_settings import method_of
from larosa.records.quantization_label import NONE
from larosa_analysis.records.conditions import device
from larosa_analysis.records.entry import SCHEMA, Entry, Record, RecordsError


def read(paths: list[Path]) -> list[Record]:
    """The records, in the order given, without their checksums. Raises RecordsError on anything else."""
    records = []
    for path in paths:
        try:
            record = checksum.read(path)
        except checksum.DamagedError as error:
            raise RecordsError(f"{path}: {error}; measure it again with larosa.decode.benchmark") from error
        if record.get("kind") != "decode" or record.get("schema") != SCHEMA:
            raise RecordsError(f"{path}: expected a record of larosa.decode.benchmark, schema {SCHEMA}")
        if not record["parity"]:
            raise RecordsError(f"{path}: timed without a parity check")
        backends = {row.get("backend", "triton") for row in record["rows"]}
        if str(record["device"]).startswith("cpu") or backends != {"triton"}:
            raise RecordsError(
                f"{path}: {', '.join(sorted(backends))} on {record['device']} is no speed measurement; expected the "
                "Triton kernels on a GPU"
            )
        records.append(record)
    return records


def of_runs(runs: list[Record]) -> list[Record]:
    """One of each run whose kernels were timed after a parity check, by model, method and target."""
    spoken = [(run, run["metrics"].get("speed") or {}) for run in runs]
    timed = [run for run, speed in spoken if speed.get("parity") and caveat_of(speed) is None]
    timed.sort(key=lambda run: (run["model"]["name"], run["label"], run["metrics"]["accounting"]["target_sparsity"]))
    return [_record(run) for run in timed]


def _record(run: Record) -> Record:
    versions, model, speed = run["versions"], run["model"], run["metrics"]["speed"]
    overhead, schedule = run["metrics"]["accounting"]["overhead"]["kind"], Entry.of(run).schedule
    quantization = run["config"].get("quantization") or {}
    label = run["label"].partition(" (")[0]
    told = {schedule: "uniform", overhead: "none"}  # by itself
    named = [label, *(name for name, usual in told.items() if name != usual)]
    return {
        "schema": SCHEMA,
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
        "overhead": ", ".join(named),
        "quantization": quantization.get("weights", NONE),
        "head": quantization.get("head", NONE),
        "adapters": quantization.get("adapters", NONE),
        "selection_us": {},
        "parity": {run["identity"]: speed["parity"]},
        "rows": [_row(run, row) for row in speed["rows"]],
    }


def _row(run: Record, row: dict[str, Any]) -> dict[str, Any]:
    """The row, named by selector and target as the benchmark names it."""
    if row["kind"] != "sparse":
        return row
    selector = "thresholds" if method_of(run["config"])["selector"] == "threshold" else "top-k"
    return row | {"name": f"{selector} {100 * run['metrics']['accounting']['target_sparsity']:g} %"}
