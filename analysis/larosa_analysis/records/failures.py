"""Runs that could not be measured: what was asked, and why not, as tables say it in place of a value.

`failed-NAME.json` stands beside `NAME.jsonl`; `python -m larosa_analysis.compact` makes both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larosa.records import checksum
from larosa.records.quantization_label import NONE, joined
from larosa_analysis.records.entry import Record, RecordsError

FILE = "failed.json"
"""Where a run's `result.json` would be."""
_ASKED = ("model", "method", "label", "sparsity", "schedule", "calibration", "texts", "tasks", "timed")
_KEPT = ("label", "asked", "error", "message", "created")
_UNREACHABLE = "ScheduleError"
"""Error of a target that no schedule of the method can plan."""


@dataclass(frozen=True)
class Failure:
    """One run without a record."""

    model: str
    method: str
    """Preset of the method."""
    label: str
    target: float
    """The target sparsity, a fraction."""
    schedule: str
    calibration: str
    texts: tuple[str, ...]
    tasks: tuple[str, ...]
    error: str
    message: str
    quantization: str = NONE
    """What was to be quantised, as :mod:`larosa.records.quantization_label` names it."""

    @classmethod
    def of(cls, failure: Record) -> Failure:
        """Read what :func:`short` keeps. Raises RecordsError if it is not that."""
        if not isinstance(failure, dict) or set(_KEPT) - set(failure) or set(_ASKED) - set(failure["asked"]):
            raise RecordsError(
                f"expected a failure with {', '.join(_KEPT)}, its run with {', '.join(_ASKED)}; make the file with "
                "`python -m larosa_analysis.compact RUNS_DIR OUT.jsonl`"
            )
        asked: dict[str, Any] = failure["asked"]
        return cls(
            str(asked["model"]), str(asked["method"]), str(asked["label"]), float(asked["sparsity"]),
            str(asked["schedule"]), str(asked["calibration"]), tuple(asked["texts"]), tuple(asked["tasks"]),
            str(failure["error"]), str(failure["message"]), str(asked.get("quantization", NONE)),
        )  # fmt: skip

    @property
    def full_label(self) -> str:
        """The method's, with what is quantised among its settings, as runs have it."""
        return joined(self.label, self.quantization)

    @property
    def state(self) -> str:
        """What stands in its cell of a table."""
        return "cannot reach" if self.error == _UNREACHABLE else "failed"

    @property
    def why(self) -> str:
        """The first line of the message, without a stop at its end."""
        return self.message.partition("\n")[0].strip().rstrip(".")


def beside(records: Path) -> Path:
    """Where the failures of a file of records are."""
    return records.with_name(f"failed-{records.stem}.json")


def of_diagnostics(failure: Record) -> bool:
    """Whether diagnostics failed, not a run."""
    return isinstance(failure, dict) and bool(failure.get("asked", {}).get("diagnostics"))


def short(failure: Record) -> Record:
    """Of a `failed.json` what tables need. Raises RecordsError if it is none."""
    missing = [key for key in _KEPT if key not in failure] if isinstance(failure, dict) else list(_KEPT)
    if missing:
        raise RecordsError(f"{FILE} lacks {', '.join(missing)}: it was made by an older larosa; delete it")
    kept = {key: failure[key] for key in _KEPT}
    Failure.of(kept)
    return kept


def newest(failures: list[Record]) -> list[Record]:
    """One failure per run, sorted by what was asked."""
    by_age = sorted(failures, key=lambda failure: failure["created"])
    by_run = {json.dumps(failure["asked"], sort_keys=True): failure for failure in by_age}
    return [failure for _, failure in sorted(by_run.items())]


def read(path: Path) -> list[Record]:
    """The failures of a file. Raises RecordsError that names it where it is damaged."""
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(records, list):
            raise RecordsError("expected a list of failures")
        failures = [checksum.opened(record) for record in records]
        for failure in failures:
            Failure.of(failure)
    except (ValueError, RecursionError, RecordsError) as error:
        raise RecordsError(f"{path.name}: {error}") from error
    return failures
