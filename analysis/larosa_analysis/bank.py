"""All records of a folder, read once: measured runs, inspections of activations, decode timings.

*.jsonl         compact records (python -m larosa_analysis.compact)
failed-*.json   cells that could not be measured, and why
inspect-*.json  surfaces, thresholds, error curves, covariances: `kind` tells which
decode-*, lengths-*, contexts-*.json  timings of larosa.decode.benchmark, in a folder of their own; runs with
                evaluation=speed join them
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from larosa_analysis import checksum, failed, run_speed, speed
from larosa_analysis.compact import newest
from larosa_analysis.failed import Failure
from larosa_analysis.quantised import NONE
from larosa_analysis.records import SCHEMA, Record, RecordsError, read_lines
from larosa_analysis.run import Run

KINDS = {
    "surface": ("layer", "site", "before", "after"),
    "thresholds": ("method", "levels", "calibrated", "needed"),
    "error_curve": ("layer", "site", "levels", "theory", "measured"),
    "covariance": ("sets", "site", "cosine"),
}
"""Kind of an inspection -> what its values must hold."""
TIMED = ("decode", "lengths", "contexts")
"""How the names of timings begin."""


@dataclass(frozen=True)
class Bank:
    """Everything that tables and figures are made of."""

    runs: list[Run]
    inspections: list[Record]
    timings: list[Record]
    failures: list[Failure] = field(default_factory=list)

    def inspected(self, kind: str) -> list[Record]:
        """The inspections of one kind, by model and time."""
        found = [record for record in self.inspections if record["kind"] == kind]
        return sorted(found, key=lambda r: (r["model"], r["created"]))

    def of(self, model: str, quantised: bool = False) -> list[Run]:
        """The runs of one model; those on rounded weights only if `quantised`."""
        return [run for run in self.runs if run.model == model and (quantised or run.entry.quantization == NONE)]

    @property
    def models(self) -> list[str]:
        """Names of the models with runs, sorted."""
        return sorted({run.model for run in self.runs})


def read(records: Path, timings: Path) -> Bank:
    """Both folders; either may be empty or missing. Raises RecordsError that names a file that cannot be read."""
    lines = [line for path in sorted(records.glob("*.jsonl")) for line in read_lines(path)]
    runs = [Run.of(record) for record in newest([record for record in lines if _is_run(record)])]
    inspections = [_inspection(path) for path in sorted(records.glob("inspect-*.json"))]
    timed = speed.read(sorted(path for kind in TIMED for path in timings.glob(f"{kind}-*.json")))
    unmade = [Failure.of(own) for path in sorted(records.glob("failed-*.json")) for own in failed.read(path)]
    made = {(run.model, run.entry.label, run.entry.asked) for run in runs}  # a failure that a later run made good
    failures = [own for own in unmade if (own.model, own.full_label, own.level) not in made]
    return Bank(runs, inspections, [*timed, *run_speed.timings([run.entry.record for run in runs])], failures)


def _is_run(record: Record) -> bool:
    if not isinstance(record, dict) or not {"identity", "created", "model", "metrics"} <= set(record):
        raise RecordsError(
            "a line is no compact record; make it with `python -m larosa_analysis.compact RUNS OUT.jsonl`"
        )
    if record["schema"] != SCHEMA:
        raise RecordsError(f"record {record['identity']} has schema {record['schema']}, this code reads {SCHEMA}")
    return True


def _inspection(path: Path) -> Record:
    try:
        record = checksum.read(path)
        needed = KINDS[record["kind"]]
        missing = [name for name in ("model", "created", "values") if name not in record]
        missing += [name for name in needed if name not in record["values"]]
    except checksum.DamagedError as error:
        raise RecordsError(f"{path.name}: {error}; inspect again with `python -m larosa.inspect`") from error
    except (KeyError, TypeError) as error:
        raise RecordsError(
            f"{path.name} is no inspection: expected a kind of {', '.join(KINDS)} with its values ({error!r})"
        ) from error
    if missing or record.get("schema") != SCHEMA:
        raise RecordsError(f"{path.name}: expected schema {SCHEMA} and {', '.join(needed)}; missing {missing}")
    return record
