"""Runs that failed, on disk: `failed.json` stands where a run's `result.json` would, until the run succeeds.

It says what was asked, the command that measures it again, the error's message, and where it arose. Message and
traceback hold no paths of the machine; the command does where the run itself needs one (`model.path`).
"""

from __future__ import annotations

import datetime
import json
import logging
import traceback
from pathlib import Path
from typing import Any

from larosa.config.run import RunConfig
from larosa.errors import LarosaError
from larosa.records import checksum, quantization_label
from larosa.records.commit import git_state
from larosa.records.disk import write_atomically
from larosa.records.scrub import scrub

log = logging.getLogger(__name__)

NAME = "failed.json"
SCHEMA = 1
_FRAMES = 8
"""Innermost calls that are kept."""


class RunFailedError(LarosaError):
    """A run could not be measured; its failure is on disk already."""


class RunsFailedError(LarosaError):
    """Some runs could not be measured; the others are recorded."""

    def __init__(self, failed: dict[str, str], measured: int) -> None:
        self.failed = failed
        """Label of a run -> message."""
        lines = [f"{label}: {message}" for label, message in failed.items()]
        super().__init__("\n".join([f"{len(failed)} of {len(failed) + measured} runs could not be measured:", *lines]))


def asked(config: RunConfig) -> dict[str, Any]:
    """What names a run in a table."""
    quantization = quantization_label.name({"quantization": config.quantization.model_dump(mode="json")})
    return {
        "model": config.model.name,
        "method": config.method.preset,
        "label": config.method.label,
        "sparsity": config.sparsity,
        "quantization": quantization,
        "schedule": config.schedule.name,
        "metric": config.schedule.metric,
        "calibration": config.calibration.text.name,
        "texts": list(config.texts),
        "tasks": list(config.evaluation.zero_shot.tasks),
        "timed": config.evaluation.speed is not None,
        "diagnostics": config.diagnostics.kind,
    }


def report(label: str, error: BaseException) -> None:
    """One message for a reason that a user can act on, with the traceback for any other."""
    expected = isinstance(error, LarosaError | OSError)
    log.error("%s could not be measured: %s", label, message_of(error), exc_info=None if expected else error)


def write(folder: Path, label: str, error: BaseException, command: str, names: dict[str, Any]) -> Path:
    """Leave `failed.json` in `folder`. A disk that refuses it costs only this file: the message is logged anyway.

    command: measures it again; names: what names the run in a table, see :func:`asked`. Returns the file.
    """
    record = {
        "schema": SCHEMA,
        "label": label,
        "asked": names,
        "command": command,
        "error": type(error).__name__,
        "message": _without_paths(message_of(error)),
        "traceback": [_without_paths(frame) for frame in _frames(error)],
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git": git_state(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / NAME, json.dumps(checksum.sealed(record), indent=1).encode())
    except OSError as problem:
        log.warning("%s could not be written (%s)", folder / NAME, problem)
    return folder / NAME


def forget(folder: Path) -> None:
    """The run has succeeded: its failure, if there was one, is history."""
    try:
        (folder / NAME).unlink(missing_ok=True)
    except OSError as problem:
        log.warning("%s could not be removed (%s): its run has succeeded since", folder / NAME, problem)


def message_of(error: BaseException) -> str:
    """The error's message; of one without, its kind."""
    return str(error).strip() or type(error).__name__


def _without_paths(text: str) -> str:
    """Absolute paths inside a text cut to the file's name."""
    return str(scrub(f": {text}"))[2:]  # a text that begins with a path would be taken for a path as a whole


def _frames(error: BaseException) -> list[str]:
    """`file:line in function: code` of the innermost calls, files by their place in the package or the repository."""
    root = Path(__file__).resolve().parents[2]
    frames = []
    for frame in traceback.extract_tb(error.__traceback__)[-_FRAMES:]:
        path = Path(frame.filename)
        parts = path.parts
        if path.is_relative_to(root):
            short = path.relative_to(root).as_posix()
        elif "site-packages" in parts:
            short = "/".join(parts[parts.index("site-packages") + 1 :])
        else:
            short = path.name
        frames.append(f"{short}:{frame.lineno} in {frame.name}: {frame.line or ''}")
    return frames
