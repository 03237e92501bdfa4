"""All records of a folder, read once: measured runs, diagnostics of activations, decode timings.

*.jsonl         compact records (python -m larosa_analysis.compact)
failed-*.json   runs that could not be measured, and why
inspect-*.json  surfaces, thresholds, error curves, covariances: `kind` tells which
decode-*, lengths-*, contexts-*.json  timings of larosa.decode.benchmark, in a folder of their own; runs with
                evaluation=speed join them
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from larosa.commands import typed
from larosa.records import checksum
from larosa.records.quantization_label import NONE
from larosa_analysis.records import failures, timings
from larosa_analysis.records.entry import SCHEMA, Record, RecordsError, read_lines
from larosa_analysis.records.failures import Failure
from larosa_analysis.records.run import Run

KINDS = {
    "surface": ("layer", "site", "before", "after"),
    "thresholds": ("method", "levels", "calibrated", "needed"),
    "error_curve": ("layer", "site", "levels", "theory", "measured"),
    "covariance": ("sets", "site", "cosine"),
}
"""Kind of diagnostics -> what its values must hold."""
TIMED = ("decode", "lengths", "contexts")
"""How the names of timings begin."""


@dataclass(frozen=True)
class RecordStore:
    """Everything that tables and figures are made of."""

    runs: list[Run]
    diagnostics: list[Record]
    timings: list[Record]
    failures: list[Failure] = field(default_factory=list)

    def diagnostics_of(self, kind: str) -> list[Record]:
        """The diagnostics of one kind, by model and time."""
        records = [record for record in self.diagnostics if record["kind"] == kind]
        return sorted(records, key=lambda r: (r["model"], r["created"]))

    def of(self, model: str, quantised: bool = False) -> list[Run]:
        """The runs of one model; those on quantised weights only if `quantised`."""
        return [run for run in self.runs if run.model == model and (quantised or run.entry.quantization == NONE)]

    @property
    def models(self) -> list[str]:
        """Names of the models with runs, sorted."""
        return sorted({run.model for run in self.runs})


def read(records: Path, timed: Path) -> RecordStore:
    """Both folders; either may be empty or missing. Raises RecordsError that names a file that cannot be read."""
    lines = [line for path in sorted(records.glob("*.jsonl")) for line in read_lines(path)]
    runs = [Run.of(record) for record in newest([record for record in lines if _is_run(record)])]
    diagnostics = [_diagnostics(path) for path in sorted(records.glob("inspect-*.json"))]
    timing_files = sorted(path for kind in TIMED for path in timed.glob(f"{kind}-*.json"))
    every_timing = [*timings.read(timing_files), *timings.of_runs([run.entry.record for run in runs])]
    failed = [Failure.of(line) for path in sorted(records.glob("failed-*.json")) for line in failures.read(path)]
    measured = {(run.model, run.entry.label, run.entry.target) for run in runs}  # a later run made a failure good
    lasting = [failure for failure in failed if (failure.model, failure.full_label, failure.target) not in measured]
    return RecordStore(runs, diagnostics, every_timing, lasting)


def newest(records: Iterable[Record]) -> list[Record]:
    """One record per identity, sorted by model, label, target and identity."""
    by_identity = {r["identity"]: r for r in sorted(records, key=lambda r: (r["created"], checksum.checksum(r)))}
    return sorted(by_identity.values(), key=_order)


def _order(record: Record) -> tuple[Any, ...]:
    target = record["metrics"]["accounting"]["target_sparsity"]
    return record["model"]["name"], record["label"], target, record["identity"]


def _is_run(record: Record) -> bool:
    if not isinstance(record, dict) or not {"identity", "created", "model", "metrics"} <= set(record):
        raise RecordsError(
            "a line is no compact record; make it with `python -m larosa_analysis.compact RUNS OUT.jsonl`"
        )
    if record["schema"] != SCHEMA:
        raise RecordsError(f"record {record['identity']} has schema {record['schema']}, this code reads {SCHEMA}")
    return True


def _diagnostics(path: Path) -> Record:
    try:
        record = checksum.read(path)
        needed = KINDS[record["kind"]]
        missing = [name for name in ("model", "created", "values") if name not in record]
        missing += [name for name in needed if name not in record["values"]]
    except checksum.DamagedError as error:
        raise RecordsError(f"{path.name}: {error}; make it again with `{typed('diagnose')}`") from error
    except (KeyError, TypeError) as error:
        raise RecordsError(
            f"{path.name} holds no diagnostics: expected a kind of {', '.join(KINDS)} with its values ({error!r})"
        ) from error
    if missing or record.get("schema") != SCHEMA:
        raise RecordsError(f"{path.name}: expected schema {SCHEMA} and {', '.join(needed)}; missing {missing}")
    return record
