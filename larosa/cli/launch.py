"""One call of `run.py`: from Hydra's settings to records, alone or as one run of a sweep.

Alone, a run that fails ends the process with one readable message. In a sweep it is noted on disk and the others go
on: in `failed.json` (:mod:`larosa.experiment.failures`) and in the sweep's folder (:mod:`larosa.cli.sweep`).
"""

from __future__ import annotations

import datetime
import json
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from larosa.cli.overrides import explained
from larosa.cli.sweep import Outcome, Sweep
from larosa.config.run import ConfigError, RunConfig
from larosa.errors import LarosaError, described

if TYPE_CHECKING:
    from larosa.experiment.session import Sessions

log = logging.getLogger(__name__)


def read(settings: DictConfig) -> RunConfig:
    """The checked settings of a run. Raises ConfigError, and ModelError for a model that is not there."""
    try:
        tree: Any = OmegaConf.to_container(settings, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explained(error)) from None
    config = RunConfig.parse(tree)
    from larosa.models.resolve import resolved  # heavy imports wait until the settings are known to be good

    return resolved(config)


def alone(settings: DictConfig, command: str) -> None:
    """Run, and end with one readable message where something is wrong."""
    try:
        _made(read(settings), command)
    except LarosaError as error:
        log.error("%s", error)
        sys.exit(2)
    except OSError as error:
        log.error("%s", described(error))
        sys.exit(2)


def in_sweep(sweep: Sweep, settings: DictConfig, overrides: Sequence[str], command: str) -> None:
    """Run, note the outcome, and return in any case but an interruption. command: see :mod:`larosa.cli.invocation`."""
    if os.getpid() != sweep.starter:
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported, which is now
    from tqdm.contrib.logging import logging_redirect_tqdm

    outcome = Outcome(list(overrides))
    start = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with logging_redirect_tqdm():
        try:
            config = read(settings)
            if config.tracking.group is None:
                tracking = config.tracking.model_copy(update={"group": sweep.group})
                config = config.model_copy(update={"tracking": tracking})
            created = _made(config, command, shared=True)
            outcome.measured = any(start <= moment for moment in created)
            shutil.rmtree(_unplaced(settings, overrides), ignore_errors=True)
        except Exception as error:
            outcome.failed = _noted(error, settings, overrides, command)
    sweep.note(outcome)


def _made(config: RunConfig, command: str, shared: bool = False) -> list[str]:
    """Measure or diagnose; returns when each record was made. shared: on the session of this process."""
    if config.diagnostics.kind is not None:
        from larosa.cli.diagnose import diagnose  # heavy imports wait until the settings are known to be good

        path = diagnose(config.diagnostics.kind, config, _sessions() if shared else None)
        log.info("%s holds the diagnostics", path)
        return [str(json.loads(path.read_text(encoding="utf-8"))["created"])]
    from larosa.experiment.pipeline import run

    return [str(record["created"]) for record in run(config, command, _sessions() if shared else None).values()]


@cache
def _sessions() -> Sessions:
    """The session of this process: the runs of a sweep that follow each other in it share a loaded model."""
    from larosa.experiment.session import Sessions

    return Sessions()


def _noted(error: Exception, settings: DictConfig, overrides: Sequence[str], command: str) -> dict[str, str]:
    """Write down why a run failed, unless its runs are written down already; returns label -> message."""
    from larosa.experiment import failures, plan_runs

    if isinstance(error, failures.RunsFailedError):
        return error.failed
    label, folder, asked = " ".join(overrides), _unplaced(settings, overrides), {}
    try:
        config = read(settings)
        label, asked = config.method.label, failures.asked(config)
        folder = plan_runs.folder_of(config) if config.diagnostics.kind is None else folder
    except (LarosaError, OSError):
        pass  # the settings themselves are wrong, or the model is not there: the command says what was asked
    failures.report(label, error)
    failures.write(folder, label, error, command, asked)
    return {label: failures.message_of(error)}


def _unplaced(settings: DictConfig, overrides: Sequence[str]) -> Path:
    """Where the failure is noted of a run that cannot be planned, and so has no folder."""
    from larosa.records.disk import digest

    output = OmegaConf.select(settings, "output", throw_on_missing=False) or "runs"
    return Path(str(output)).expanduser() / f"failed-{digest({'overrides': sorted(overrides)})[:10]}"
