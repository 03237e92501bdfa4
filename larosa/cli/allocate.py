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

from pathlib import Path
from typing import Any

import numpy as np

from larosa.cli import command
from larosa.cli.command import calibration_only, schedule_destination, uniform
from larosa.config.run import RunConfig
from larosa.experiment.plan_runs import plan_runs
from larosa.experiment.prepare import prepare
from larosa.experiment.schedule_provenance import made_by
from larosa.experiment.session import Session, open_session, read_documents
from larosa.methods.planning import thresholds_of
from larosa.models.architecture import SITES
from larosa.search.allocation import AllocationError, Floats, allocate
from larosa.search.curves import output_curves
from larosa.search.divergence import divergence_curves
from larosa.search.greedy_levels import greedy_allocation
from larosa.sparsity.handle import SparsityHandle
from larosa.sparsity.schedule_file import write_schedule


def run(config: RunConfig) -> Path:
    """Find the levels of `config.method` for `config.sparsity` and write them to `config.schedule.path`."""
    schedule_destination(config)
    _check_reach(config)
    documents = read_documents(config)  # evaluation texts too: a schedule must not be searched on them
    config = calibration_only(config)
    return search(config, open_session(config, documents))


def search(config: RunConfig, session: Session) -> Path:
    """The same on an open session. Raises ConfigError or AllocationError where nothing can be found."""
    path = schedule_destination(config)
    _check_reach(config)
    if config.allocation.other_sites == "dense":  # the schedule's levels are not used
        config = config.model_copy(update={"schedule": uniform("weight_bytes")})
    planned = list(plan_runs(config).values())[-1]
    handle, _ = prepare(planned, session, quantised=False)
    with handle:
        levels, measured = _find(config, session, handle)
    coefficients = {site: (levels[:, i] / config.sparsity).tolist() for i, site in enumerate(SITES)}
    settings = {"allocation": config.allocation.model_dump(mode="json"), **measured}
    if config.allocation.other_sites == "sparse":
        settings["others"] = planned.levels.source
    shape = handle.plan.shape
    write_schedule(
        path, shape, coefficients, made_by("larosa.cli.allocate", config, session.calibration.sha256, settings)
    )
    return path


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
    curves_of = output_curves if chosen.error == "output" else divergence_curves
    curves = curves_of(session.model, handle, ids, chosen.grid, thresholds, chosen.other_sites)
    weights = np.array([float(handle.plan.shape.sites[site].weights) for site in SITES])
    levels = allocate(curves, np.array(chosen.grid), weights, config.sparsity)
    return levels, {"curves": {site: curves[:, i].tolist() for i, site in enumerate(SITES)}}


def main() -> None:
    """The command."""
    command.main(run)


if __name__ == "__main__":
    main()
