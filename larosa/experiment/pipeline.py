"""The story of one run: check, read texts, load, calibrate, plan, apply, prove, measure, record.

run(config)
  runs = what to measure: the baselines, then the method; one whose record exists is done (no weights needed)
  session = texts, tokens, model, calibrator (loaded once, if anything is missing)
  for each planned (one that another process measures is waited for):
    plan -> apply -> level-0 check [-> round] -> perplexity -> errors -> tasks [-> gate -> speed] -> record
  table and figures of all runs, W&B
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from larosa import models
from larosa.config.base import ConfigError
from larosa.config.run import RunConfig
from larosa.data.tokens import TokenBlock
from larosa.evaluation.accounting import account, quantised_account
from larosa.evaluation.error import probe
from larosa.evaluation.perplexity import perplexity
from larosa.evaluation.sparsity import SparsityMeter, over_texts
from larosa.evaluation.tasks.zero_shot import zero_shot
from larosa.experiment import failures, results, summary
from larosa.experiment.plan_runs import PlannedRun, plan_runs, require_unchanged
from larosa.experiment.prepare import prepare
from larosa.experiment.provenance import Stages, hardware, versions
from larosa.experiment.results import Record
from larosa.experiment.session import Session, Sessions
from larosa.experiment.tracking import Tracker
from larosa.records.commit import git_state
from larosa.records.disk import claimed, digest
from larosa.sparsity.handle import SparsityHandle

log = logging.getLogger(__name__)

BATCH_DEPENDENCE = (
    "Selection is discontinuous: where a magnitude is within rounding of the k-th or of the threshold, the order of "
    "sums decides whether it stays, and that order changes with batch size and padding. This happens at any site and "
    "token, under either rule for ties. On SmolLM2-135M in float32 at 50 %, 4 of 64 log-likelihoods differed between "
    "batch sizes 1 and 8, the most by 20 %; in float64 none did (3e-14). Batch size 1 makes a score independent of the "
    "texts beside it; the batch sizes of this record are in its config."
)


def run(config: RunConfig, command: str = "", sessions: Sessions | None = None) -> dict[str, Record]:
    """Measure the method of `config` and its baselines; returns their records by label, the method's last.

    `command`, which measures it again, is noted where a planned fails; `sessions` keeps the session for the next run.
    Raises LarosaError before weights load wherever the reason can be known by then, RunsFailedError when all other
    runs are recorded.
    """
    runs = plan_runs(config)
    if config.figures:
        _drawer(config.figures)  # a mistake is known before anything is measured
    main = list(runs.values())[-1]
    records = {} if config.force else _stored(runs)
    missing = {name: planned for name, planned in runs.items() if name not in records}
    if missing:
        models.ensure_available(config.model)
        results.check_output(config)
    with Tracker(config, main.folder.name, measured=bool(missing)) as tracker:
        measured, failed = _measure_all(missing, config, command, sessions)
        records = {name: found for name in runs if (found := records.get(name) or measured.get(name))}
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
    runs: dict[str, PlannedRun], config: RunConfig, command: str, sessions: Sessions | None
) -> tuple[dict[str, Record], dict[str, str]]:
    """Records and messages of failed runs, by label. Raises what keeps all of them from being measured."""
    sessions = sessions or Sessions()
    records: dict[str, Record] = {}
    failed: dict[str, str] = {}
    for name, planned in runs.items():
        with claimed(planned.folder):
            found = None if config.force else results.load_record(planned.folder, planned.identity)
            if found is None:
                sessions.open(config)
                try:
                    found = results.read(results.save_record(planned.folder, measure(planned, sessions.open(config))))
                    log.info("recorded %s", planned.folder / "result.json")
                except Exception as error:
                    failed[name] = failures.message_of(error)
                    failures.write(planned.folder, name, error, command, failures.asked(planned.config))
                    failures.report(name, error)
            if found is None:
                sessions.clear()  # only now: the error held on to it
                continue
            failures.forget(planned.folder)
            records[name] = found
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
        found: Callable[[dict[str, Record], Path], list[Path]] = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"figures={name}: expected package.module.function, or null ({error})") from error
    return found


def _stored(runs: dict[str, PlannedRun]) -> dict[str, Record]:
    records = {}
    for name, planned in runs.items():
        record = results.load_record(planned.folder, planned.identity)
        if record is not None:
            records[name] = record
            failures.forget(planned.folder)
            log.info(
                "%s is done already (%s, commit %s); force=true measures it again",
                name,
                planned.folder,
                str(record["git"]["commit"])[:10],
            )
    return records


def measure(planned: PlannedRun, session: Session) -> Record:
    """Plan, apply, prove and measure one planned; the model is dense again afterwards."""
    config, stages = planned.config, Stages()
    log.info("measuring %s", config.method.label)
    vocabulary = int(session.model.config.vocab_size)
    handle, prepared = prepare(planned, session, stages)
    with handle:
        metrics: dict[str, Any] = {"accounting": account(handle.plan, vocabulary), **prepared}
        if config.quantization.active:
            metrics["accounting"]["quantised"] = quantised_account(handle.plan, config.quantization, vocabulary)
        with stages("perplexity"):
            metrics |= _perplexities(planned, session, handle)
        if config.method.name != "dense":
            with stages("errors"):
                probed = session.calibration.ids[: config.calibration.probe_sequences]
                metrics["errors"] = probe(session.model, handle, probed)
        with stages("zero_shot"):
            metrics["zero_shot"] = _scores(planned, session)
        if config.method.name != "dense":
            metrics["batch_dependence"] = BATCH_DEPENDENCE
        if config.evaluation.speed is not None:
            from larosa.decode.evaluate import speed  # triton, which not every machine has

            with stages("speed"):
                asked, prompt = config.evaluation.speed, session.calibration.ids[0]
                metrics["speed"] = speed(session.model, handle, prompt, session.dense.kappa, asked, config.backend)
    require_unchanged(planned)
    return _record(planned, session, metrics, session.stages | stages.record)


def _scores(planned: PlannedRun, session: Session) -> dict[str, Any]:
    asked, avoided = planned.config.evaluation.zero_shot, results.excluded_by(planned.config)
    scores = zero_shot(session.model, session.tokenizer, asked, planned.config.seed, avoided, session.passages)
    return {name: asdict(score) for name, score in scores.items()}


def _record(
    planned: PlannedRun, session: Session, metrics: dict[str, Any], stages: dict[str, dict[str, float]]
) -> Record:
    return {
        "schema": results.SCHEMA,
        "identity": digest(planned.identity),
        "label": planned.config.method.label,
        "identity_inputs": planned.identity,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": planned.config.model_dump(mode="json"),
        "git": git_state(),
        "versions": versions(),
        "hardware": hardware(),
        "device": str(session.model.device),
        "backend": metrics["speed"]["backend"] if "speed" in metrics else "reference",
        "data": _data(session, planned.config.method.name != "dense" or planned.config.quantization.calibrated),
        "metrics": metrics,
        "stages": stages,
        "wall_s": sum(stage["wall_s"] for stage in stages.values()),
        "units": results.UNITS,
    }


def _perplexities(planned: PlannedRun, session: Session, handle: SparsityHandle) -> dict[str, Any]:
    meters = {name: SparsityMeter(handle.plan.shape, handle.plan.levels.weights_per_channel) for name in session.texts}
    found, size = {}, planned.config.evaluation.perplexity.batch_size
    for name, block in session.texts.items():
        with handle.observed_by(meters[name]):
            found[name] = perplexity(
                session.model, block.ids, size, f"{planned.config.method.label}: perplexity on {name}"
            )
    measured = {name: meter.summary() for name, meter in meters.items()}
    return {"perplexity": found, "achieved_sparsity": measured, "achieved_over_texts": over_texts(measured)}


def _data(session: Session, calibrated: bool) -> dict[str, Any]:
    """Hashes and counts of the tokens; the dense model's record does not depend on a calibration."""

    def described(block: TokenBlock) -> dict[str, Any]:
        return {
            "text": block.text,
            "documents": block.documents,
            "tokens": block.ids.numel(),
            "blocks": list(block.ids.shape),
            "tokens_available": block.tokens_available,
            "sha256": block.sha256,
        }

    texts = {name: described(block) for name, block in session.texts.items()}
    if not calibrated:
        return {"texts": texts}
    for name, text in texts.items():
        found = session.overlaps[name]
        text["overlap_with_calibration"] = asdict(found) | {"share": found.share}
    return {"calibration": described(session.calibration), "texts": texts}
