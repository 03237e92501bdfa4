"""Find levels per layer and site and write them as a schedule file, for runs to use by name.

    larosa allocate model=smollm2-135m method=magnitude sparsity=0.5 schedule.path=mine
    larosa run model=smollm2-135m method=magnitude sparsity=0.5 schedule=file schedule.path=mine

allocation.algorithm=marginal: equal marginal error over all layers and sites (search.allocation). The error is that of
a layer's output (allocation.error=output, search.curves) or of the model's distribution (kl, search.divergence). Each
site is varied among dense or sparse others (allocation.other_sites).
allocation.algorithm=greedy: TEAL's levels, every layer at the target (search.greedy).

All errors are taken on the probe sequences of the calibration text. kl runs the model, from the site's layer on, once
per sequence, layer, site and level of allocation.grid: minutes on a GPU, an hour or more on two CPU cores.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from larosa import models
from larosa.cli import command
from larosa.cli.command import calibration_only, schedule_destination, uniform
from larosa.config.run import RunConfig
from larosa.experiment.plan_runs import PlannedRun, plan_runs
from larosa.experiment.prepare import prepare
from larosa.experiment.schedule_provenance import made_by
from larosa.experiment.session import Session, open_session, read_documents
from larosa.methods.planning import thresholds_of
from larosa.models.architecture import SITES
from larosa.models.sites import ModelShape
from larosa.records.disk import digest, locked
from larosa.search.allocation import AllocationError, Floats, allocate
from larosa.search.curves import output_curves
from larosa.search.divergence import divergence_curves
from larosa.search.greedy_levels import greedy_allocation
from larosa.sparsity.handle import SparsityHandle
from larosa.sparsity.level_override import ThresholdAt
from larosa.sparsity.schedule import ScheduleError
from larosa.sparsity.schedule_file import read_made_by, read_schedule, write_schedule

log = logging.getLogger(__name__)


def run(config: RunConfig) -> Path:
    """Find the levels of `config.method` for `config.sparsity` and write them to `config.schedule.path`.

    A file that the same search wrote stands, unless `force` asks for a new one; another process that makes it is waited
    for.
    """
    path, config = schedule_destination(config), uncompensated(config)
    _check_reach(config)
    with locked(path):
        if is_intact(path, config) and read_made_by(path).get("search") == _identity(config):
            log.info("%s is found already; force=true searches again", path)
            return path
        documents = read_documents(config)  # evaluation texts too: a schedule must not be searched on them
        config = calibration_only(config)
        return search(config, open_session(config, documents))


def search(config: RunConfig, session: Session) -> Path:
    """The same on an open session. Raises ConfigError or AllocationError where nothing can be found."""
    path, config = schedule_destination(config), uncompensated(config)
    _check_reach(config)
    planned = _planned(config)
    handle, _ = prepare(planned, session, quantised=False)
    with handle:
        levels, measured = _find(config, session, handle)
    coefficients = {site: (levels[:, i] / config.sparsity).tolist() for i, site in enumerate(SITES)}
    settings = {"allocation": config.allocation.model_dump(mode="json"), "search": _identity(config), **measured}
    if config.allocation.other_sites == "sparse":
        settings["others"] = planned.levels.source
    shape = handle.plan.shape
    write_schedule(
        path, shape, coefficients, made_by("larosa.cli.allocate", config, session.calibration.sha256, settings)
    )
    return path


def uncompensated(config: RunConfig) -> RunConfig:
    """The run without bias compensation: biases belong to the levels that they are calibrated at, so levels are found
    without them."""
    if config.method.bias_compensation == "none":
        return config
    method = config.method.model_copy(update={"bias_compensation": "none"})
    return config.model_copy(update={"method": method})


def _planned(config: RunConfig) -> PlannedRun:
    """The run whose sites are varied."""
    if config.allocation.other_sites == "dense":  # the schedule's levels are not used
        config = config.model_copy(update={"schedule": uniform("weight_bytes")})
    return list(plan_runs(config).values())[-1]


def _identity(config: RunConfig) -> str:
    """Of a search: searches of one identity find the same levels."""
    allocation = config.allocation.model_dump(mode="json")
    return digest({"run": _planned(calibration_only(config)).identity, "allocation": allocation})


def is_intact(path: Path, config: RunConfig) -> bool:
    """Whether a schedule is there that need not be searched for; a damaged one is named, to be found again."""
    if config.force or not path.exists():
        return False
    try:
        read_schedule(path, ModelShape.of(models.model_config(config.model)))
    except ScheduleError as error:
        log.warning("%s: found again", error)
        return False
    return True


def _check_reach(config: RunConfig) -> None:
    highest = config.allocation.grid[-1]
    if config.sparsity > highest:
        raise AllocationError(f"levels run to {highest} (allocation.grid); sparsity={config.sparsity} needs more")


def _find(config: RunConfig, session: Session, handle: SparsityHandle) -> tuple[Floats, dict[str, Any]]:
    """Levels [layers, sites], and the curves that they follow from."""
    chosen, ids = config.allocation, session.calibration.ids[: config.calibration.probe_sequences]
    thresholds = thresholds_of(handle.plan, session.calibrator)
    if chosen.algorithm == "greedy":
        highest = chosen.grid[-1]
        return greedy_allocation(session.model, handle, ids, thresholds, config.sparsity, chosen.step, highest), {}
    curves = _curves(config, session, handle, ids, thresholds)
    weights = np.array([float(handle.plan.shape.sites[site].weights) for site in SITES])
    levels = allocate(curves, np.array(chosen.grid), weights, config.sparsity)
    return levels, {"curves": {site: curves[:, i].tolist() for i, site in enumerate(SITES)}}


def _curves(
    config: RunConfig, session: Session, handle: SparsityHandle, ids: Tensor, thresholds: ThresholdAt | None
) -> Floats:
    """The error curves of `config.method`. With dense others they serve every target, so they are kept."""
    chosen = config.allocation
    curves_of = output_curves if chosen.error == "output" else divergence_curves

    def build() -> dict[str, Tensor]:
        curves = curves_of(session.model, handle, ids, chosen.grid, thresholds, chosen.other_sites)
        return {"curves": torch.from_numpy(curves)}

    if chosen.other_sites == "sparse":
        return build()["curves"].numpy()
    method = config.method.model_dump(mode="json", exclude={"preset"})
    search = {"error": chosen.error, "grid": chosen.grid, "sequences": len(ids)}
    tokens = config.token_policy.model_dump(mode="json")
    identity = {"method": method, "search": search, "token_policy": tokens}
    return session.calibrator.error_curves(identity, build)["curves"].numpy()


def main() -> None:
    """The command."""
    command.main(run)


if __name__ == "__main__":
    main()
