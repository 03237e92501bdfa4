"""The measurement of one run: plan, apply, check at level 0, quantise, measure, and describe as a record.

measure(planned, session)
  prepare (calibrate -> apply -> parity check [-> quantise])
  -> perplexity -> errors -> tasks [-> parity check of the decoder -> speed] -> record
"""

from __future__ import annotations

import datetime
import logging
from dataclasses import asdict
from typing import Any

from larosa.data.tokens import TokenBlock
from larosa.evaluation.accounting import account, quantised_account
from larosa.evaluation.error import probe
from larosa.evaluation.perplexity import perplexity
from larosa.evaluation.sparsity import SparsityMeter, over_texts
from larosa.evaluation.tasks.zero_shot import zero_shot
from larosa.experiment import results
from larosa.experiment.plan_runs import PlannedRun, require_unchanged
from larosa.experiment.prepare import prepare
from larosa.experiment.provenance import Stages, hardware, versions
from larosa.experiment.results import Record
from larosa.experiment.session import Session
from larosa.models.precision import float32_matmul
from larosa.records.commit import git_state
from larosa.records.disk import digest
from larosa.sparsity.handle import SparsityHandle

log = logging.getLogger(__name__)

BATCH_DEPENDENCE = (
    "Selection is discontinuous: where a magnitude is within rounding of the k-th or of the threshold, the order of"
    " sums decides whether it is selected, and that order changes with batch size and padding. This happens at any "
    "site and token, with either setting of ties. On SmolLM2-135M in float32 at 50 %, 4 of 64 log-likelihoods "
    "differed between batch sizes 1 and 8, the most by 20 %; in float64 none did (3e-14). Batch size 1 makes a "
    "score independent of the texts beside it; the batch sizes of this record are in its config."
)


def measure(planned: PlannedRun, session: Session) -> Record:
    """Plan, apply, prove and measure one run; the model is dense again afterwards."""
    config, stages = planned.config, Stages()
    log.info("measuring %s", config.method.label)
    vocabulary = int(session.model.config.vocab_size)
    handle, prepared = prepare(planned, session, stages)
    with handle:
        metrics: dict[str, Any] = {"accounting": account(handle.plan, vocabulary), **prepared}
        if config.quantization.active:
            metrics["accounting"]["quantised"] = quantised_account(handle.plan, config.quantization, vocabulary)
        with stages("perplexity"), float32_matmul(config.evaluation.float32_matmul):
            metrics |= _perplexities(planned, session, handle)
        if config.method.name != "dense":
            with stages("errors"):
                probed = session.calibration.ids[: config.calibration.probe_sequences]
                metrics["errors"] = probe(session.model, handle, probed)
        with stages("zero_shot"), float32_matmul(config.evaluation.float32_matmul):
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
    tasks, excluded = planned.config.evaluation.zero_shot, results.excluded_by(planned.config)
    scores = zero_shot(session.model, session.tokenizer, tasks, planned.config.seed, excluded, session.passages)
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
    perplexities, size = {}, planned.config.evaluation.perplexity.batch_size
    for name, block in session.texts.items():
        with handle.observed_by(meters[name]):
            perplexities[name] = perplexity(
                session.model, block.ids, size, f"{planned.config.method.label}: perplexity on {name}"
            )
    achieved = {name: meter.summary() for name, meter in meters.items()}
    return {"perplexity": perplexities, "achieved_sparsity": achieved, "achieved_over_texts": over_texts(achieved)}


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
        shared = session.overlaps[name]
        text["overlap_with_calibration"] = asdict(shared) | {"share": shared.share}
    return {"calibration": described(session.calibration), "texts": texts}
