"""The export of a run: planned, calibrated, checked and quantised as the run does it, then written to a folder."""

from __future__ import annotations

import logging
from pathlib import Path

from larosa.config.run import RunConfig
from larosa.experiment import results
from larosa.experiment.plan_runs import PlannedRun, plan_runs
from larosa.experiment.prepare import prepare
from larosa.experiment.results import Record
from larosa.experiment.session import open_session, read_documents
from larosa.exports.base import base_of
from larosa.exports.folder import check_destination
from larosa.exports.write import write

log = logging.getLogger(__name__)


def export_run(config: RunConfig, calibrated: RunConfig) -> Path:
    """Write the export of the run's own method to `config.output`.

    calibrated: the same run without baselines, texts and tasks, which an export does not read. Raises LarosaError.
    """
    folder = Path(config.output).expanduser()
    check_destination(folder, config.force)
    runs = list(plan_runs(config.model_copy(update={"output": config.export.records})).values())
    planned = list(plan_runs(calibrated).values())[-1]
    session = open_session(calibrated, read_documents(calibrated))
    handle, _ = prepare(planned, session)
    with handle:
        base = base_of(session.model, handle, config.model, config.seed, config.export.weights, session.tokenizer)
        return write(
            folder, session.model, base, tokenizer=session.tokenizer, calibration=config.calibration,
            measured=_measured(runs), force=config.force,
        )  # fmt: skip


def _measured(runs: list[PlannedRun]) -> list[tuple[str, str]]:
    """The card's rows of the run's record, dense perplexities beside the sparse ones; none where there is no record."""
    record = results.load_record(runs[-1].folder, runs[-1].identity)
    dense = next((run for run in runs if run.config.method.name == "dense"), None)
    beside = results.load_record(dense.folder, dense.identity) if dense else None
    if record is None:
        log.info("no record of this run in export.records: the model card says that nothing was measured")
        return []
    return [
        *_achieved(record),
        *_perplexities(record, beside),
        *((f"{task}, {s['metric']}", f"{s['value']:.1%}") for task, s in record["metrics"]["zero_shot"].items()),
        ("measured", f"{record['created']} on {record['device']}, record {record['identity']}"),
    ]


def _achieved(record: Record) -> list[tuple[str, str]]:
    achieved = record["metrics"]["achieved_sparsity"]
    return [
        (f"weight sparsity, achieved on {text}", f"{m['weight_sparsity_mean']:.1%}") for text, m in achieved.items()
    ]


def _perplexities(record: Record, dense: Record | None) -> list[tuple[str, str]]:
    rows = []
    for text, measured in record["metrics"]["perplexity"].items():
        beside = dense["metrics"]["perplexity"].get(text) if dense else None
        against = f" (dense: {beside['perplexity']:.4g})" if beside else ""
        rows.append((f"perplexity on {text}", f"{measured['perplexity']:.4g}{against}"))
    return rows
