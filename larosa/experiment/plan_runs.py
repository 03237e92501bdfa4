"""What a run measures: runs, one method at one level each, planned before any weight is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from larosa import models
from larosa.config.run import ConfigError, MethodConfig, RunConfig
from larosa.decode.weights import check_decodable, check_window
from larosa.evaluation.tasks.zero_shot import check_room, check_tasks
from larosa.experiment import results
from larosa.methods.planning import check_method, levels_of
from larosa.models.sites import ModelShape
from larosa.quantization.external import check_installed
from larosa.sparsity.schedule import Levels, byte_weighted, make_levels


@dataclass(frozen=True)
class PlannedRun:
    """One method at one level: what a record is made of."""

    config: RunConfig
    levels: Levels
    identity: dict[str, Any]
    folder: Path


def plan_runs(config: RunConfig) -> dict[str, PlannedRun]:
    """The baselines, then the method, by label: all that can fail without weights fails here (LarosaError)."""
    shape_config = models.model_config(config.model)
    shape = ModelShape.of(shape_config)
    _check(config, shape_config, shape)
    rounding = config.method.rounding
    levels = make_levels(shape, config.schedule, config.sparsity, config.model.name, rounding)
    kept_levels = {s: tuple(levels.planned(s, i, shape) for i in range(shape.layers)) for s in levels.level}
    runs: dict[str, PlannedRun] = {}
    for method in [*config.baseline.values(), config.method]:
        run = _run_of(config, method, round(byte_weighted(kept_levels, shape, levels.weights_per_channel), 6))
        planned = _planned_run(run, shape)
        same = [name for name, other in runs.items() if other.identity == planned.identity]
        for name in same:
            del runs[name]  # measured once, and the method itself stands last
        runs[_unused(method.label, runs)] = planned
    return runs


def _run_of(config: RunConfig, method: MethodConfig, byte_level: float) -> RunConfig:
    """The run of one method. A baseline's target is the weight sparsity that the method is planned at."""
    changes: dict[str, Any] = {"method": method, "baseline": {}}
    if method.name == "dense":
        changes["sparsity"] = 0.0
    elif method is not config.method and config.schedule.metric == "nominal":
        changes["schedule"] = config.schedule.model_copy(update={"metric": "weight_bytes"})
        changes["sparsity"] = byte_level
    return config.model_copy(update=changes)


def folder_of(config: RunConfig) -> Path:
    """Where the record of the run's own method belongs, also where it cannot be planned. Raises LarosaError."""
    run = _run_of(config, config.method, config.sparsity)
    return results.record_folder(run, identity_of(run))


def identity_of(config: RunConfig) -> dict[str, Any]:
    """What shapes the result of the run's own method, read now. Raises LarosaError."""
    device = models.resolve_device(config.model.device).type
    return results.identity(config, models.fingerprint(config.model), device)


def require_unchanged(planned: PlannedRun) -> None:
    """Raise RecordError where what shapes the run is no longer what it was when the run was planned."""
    now = identity_of(planned.config)
    changed = [part for part in now.keys() | planned.identity.keys() if now.get(part) != planned.identity.get(part)]
    if changed:
        raise results.RecordError(
            f"{planned.config.method.label}: files changed while it was measured ({', '.join(sorted(changed))}), so "
            "the result belongs neither to the old nor to the new ones and is not recorded: run the same command again"
        )


def _planned_run(config: RunConfig, shape: ModelShape) -> PlannedRun:
    levels = levels_of(config, shape, config.model.name)
    identity = identity_of(config)
    return PlannedRun(config, levels, identity, results.record_folder(config, identity))


def _unused(label: str, runs: dict[str, PlannedRun]) -> str:
    count = 1
    while (name := label if count == 1 else f"{label} #{count}") in runs:
        count += 1
    return name


def _check(config: RunConfig, shape_config: PretrainedConfig, shape: ModelShape) -> None:
    models.resolve_placement(config.model)
    if config.quantization.calibrated:
        _check_quantiser(config)
    check_tasks(config.evaluation.zero_shot, config.seed, results.excluded_by(config))
    tokens = config.calibration.sequences * config.calibration.length
    for method in (config.method, *config.baseline.values()):
        check_method(method, shape, tokens, "raise calibration.sequences or calibration.length")
    longest = shape_config.max_position_embeddings
    check_room(config.evaluation.zero_shot, longest)
    lengths = [
        ("calibration.length", config.calibration.length),
        ("evaluation.perplexity.length", config.evaluation.perplexity.length),
    ]
    speed = config.evaluation.speed
    if speed is not None:
        lengths.append(("evaluation.speed, context and new tokens:", max(speed.contexts) + max(speed.new_tokens)))
        if find_spec("triton") is None:
            raise ConfigError("evaluation=speed needs the package triton, which is not installed here")
    for key, length in lengths:
        if length > longest:
            raise ConfigError(f"{key}={length}, but {config.model.name} reads at most {longest} positions")
    if speed is not None:
        _check_timed(config)
        check_decodable(shape_config)
        check_window(shape_config, shape.layers, max(speed.contexts) + max(speed.new_tokens))
    _check_excluded(config)


def _check_timed(config: RunConfig) -> None:
    """Refuse times that would be no speed of the kernels, unless they are asked for by name."""
    if config.backend == "reference":
        return
    if config.model.dtype == "float32":
        raise ConfigError(
            "evaluation=speed times kernels for bfloat16 and float16: set model.dtype; float32 needs "
            "backend=reference, the torch reference, whose times are no speed measurement"
        )
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if interpreted and config.backend == "triton":
        return  # asked for twice; the results name it
    device = models.resolve_device(config.model.device).type
    if interpreted or device != "cuda":
        reason = "with TRITON_INTERPRET=1 they run in Triton's interpreter" if interpreted else f"this is a {device}"
        raise ConfigError(
            f"evaluation=speed times the kernels on a CUDA GPU, and {reason}. Run it on a GPU, leave evaluation=speed "
            "out, or ask for what is no speed measurement, which all results will then say: backend=reference (the "
            "torch reference), or TRITON_INTERPRET=1 with backend=triton (the interpreter)"
        )


def _check_quantiser(config: RunConfig) -> None:
    check_installed(config.quantization)
    wanted, held = config.quantization.sequences or 0, config.calibration.sequences
    if wanted > held:
        raise ConfigError(
            f"quantization.sequences={wanted}, but calibration.sequences={held}: expected at most as many"
        )


def _check_excluded(config: RunConfig) -> None:
    text = results.passages_text(config)
    if results.excluded_by(config) and text and text.part == "all" and text.max_documents is None:
        raise ConfigError(
            "the task boolq asks about the passages that calibration.text.part=all calibrates on: take "
            "calibration.text.part=calibration, another calibration (wikitext2, c4, text), or leave boolq out of "
            "evaluation.zero_shot.tasks"
        )
