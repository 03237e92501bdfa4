"""The story of one call of `run.py`: plan its runs, measure what has no record, show and draw all of them.

run(config)
  runs = what to measure: the baselines, then the method; one whose record exists is done (no weights needed)
  for each run without a record: its record or its failure (experiment.runner)
  table and figures of all runs, W&B
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from larosa.config.base import ConfigError
from larosa.config.run import RunConfig
from larosa.experiment import estimate, failures, summary
from larosa.experiment.plan_runs import PlannedRun, plan_runs
from larosa.experiment.results import Record
from larosa.experiment.runner import record_of, require_measurable, stored
from larosa.experiment.session import Sessions
from larosa.experiment.tracking import Tracker
from larosa.models.resolve import resolved

log = logging.getLogger(__name__)


def run(config: RunConfig, command: str = "", sessions: Sessions | None = None) -> dict[str, Record]:
    """Measure the method of `config` and its baselines; returns their records by label, the method's last.

    `command`, which measures it again, is noted where a run fails; `sessions` keeps the session for the next run.
    Raises LarosaError before weights load wherever the reason can be known by then, RunsFailedError when all other
    runs are recorded.
    """
    config = resolved(config)
    runs = plan_runs(config)
    if config.figures:
        _drawer(config.figures)  # a mistake is known before anything is measured
    main = list(runs.values())[-1]
    records = {name: record for name, planned in runs.items() if (record := stored(planned, name)) is not None}
    missing = {name: planned for name, planned in runs.items() if name not in records}
    if missing:
        estimate.announce(config, missing)
        require_measurable(config)
    with Tracker(config, main.folder.name, measured=bool(missing)) as tracker:
        measured, failed = _measure_all(missing, command, sessions or Sessions())
        records = {name: record for name in runs if (record := records.get(name) or measured.get(name))}
        rows = summary.comparison(records)
        figures = []
        if records:
            summary.show(records, rows)
            figures = _illustrate(records, rows, main.folder, config.figures)
        tracker.log(records, rows, figures)
        if failed:
            raise failures.RunsFailedError(failed, len(records))
    return records


def _measure_all(
    runs: dict[str, PlannedRun], command: str, sessions: Sessions
) -> tuple[dict[str, Record], dict[str, str]]:
    """Records and messages of failed runs, by label. Raises what keeps all of them from being measured."""
    records: dict[str, Record] = {}
    failed: dict[str, str] = {}
    for name, planned in runs.items():
        try:
            records[name] = record_of(planned, sessions, command, name)
        except failures.RunFailedError as failure:
            failed[name] = str(failure)
    return records, failed


def _illustrate(
    records: dict[str, Record], rows: list[dict[str, Any]], folder: Path, figures: str | None
) -> list[Path]:
    """The table and the figures as files; the records are safe already, so a full disk costs only these."""
    try:
        summary.write(folder, rows)
        drawn = _drawer(figures)(records, folder) if figures else []
    except OSError as error:
        log.warning("table and figures could not be written (%s); the records are complete", error)
        return []
    log.info("record, table and figures are in %s", folder)
    return drawn


def _drawer(name: str) -> Callable[[dict[str, Record], Path], list[Path]]:
    """The function that `figures` names. Raises ConfigError."""
    module, _, function = name.rpartition(".")
    try:
        draw: Callable[[dict[str, Record], Path], list[Path]] = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"figures={name}: expected package.module.function, or null ({error})") from error
    return draw
