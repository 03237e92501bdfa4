"""One run from its plan to its record, or to its failure on disk: for `run.py`, sweeps and comparisons alike.

A run that has a record is not measured again, and one that another process measures is waited for.
"""

from __future__ import annotations

import logging

from larosa import models
from larosa.config.run import RunConfig
from larosa.experiment import failures, results
from larosa.experiment.measure import measure
from larosa.experiment.plan_runs import PlannedRun
from larosa.experiment.results import Record
from larosa.experiment.session import Sessions
from larosa.records.disk import claimed

log = logging.getLogger(__name__)


def stored(planned: PlannedRun, label: str) -> Record | None:
    """The record that the run has, unless `force` asks for a new one."""
    if planned.config.force:
        return None
    record = results.load_record(planned.folder, planned.identity)
    if record is not None:
        failures.forget(planned.folder)
        commit = str(record["git"]["commit"])[:10]
        log.info("%s is done already (%s, commit %s); force=true measures it again", label, planned.folder, commit)
    return record


def require_measurable(config: RunConfig) -> None:
    """Raise LarosaError, within seconds, where the weights cannot be had or the records cannot be written."""
    models.ensure_available(config.model)
    results.check_output(config)


def record_of(planned: PlannedRun, sessions: Sessions, command: str, label: str) -> Record:
    """The record of a run that had none: from the process that measures it meanwhile, or measured here.

    command: what measures it again. Raises LarosaError where no session can be opened, RunFailedError where the run
    itself fails: `failed.json` then says why, and the session is given up.
    """
    with claimed(planned.folder):
        record = None if planned.config.force else results.load_record(planned.folder, planned.identity)
        if record is None:
            sessions.open(planned.config)
            message = ""
            try:
                path = results.save_record(planned.folder, measure(planned, sessions.open(planned.config)))
                record = results.read(path)
                log.info("recorded %s", path)
            except Exception as error:
                message = failures.message_of(error)
                failures.write(planned.folder, label, error, command, failures.asked(planned.config))
                failures.report(label, error)
            if record is None:
                sessions.clear()  # only now: the error held on to the session
                raise failures.RunFailedError(message)
        failures.forget(planned.folder)
        return record
