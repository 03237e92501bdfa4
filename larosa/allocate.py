"""Find levels per layer and site and write them as a schedule file, for runs to use by name.

    python -m larosa.allocate model=smollm2-135m method=magnitude sparsity=0.5 schedule.path=mine
    python run.py model=smollm2-135m method=magnitude sparsity=0.5 schedule=file schedule.path=mine

allocation.rule=marginal: equal marginal error over all layers and sites (sparsity.allocation), where the error is that
of a layer's output (allocation.error=output, evaluation.curves) or of the model's distribution (kl,
evaluation.divergence), each site varied among dense or sparse others (allocation.around).
allocation.rule=greedy: TEAL's levels, every layer at the target (sparsity.greedy).

All errors are taken on the probe sequences of the calibration text. kl runs the model, from the site's layer on, once
for each sequence, layer, site and level of allocation.grid: minutes on a GPU, an hour or more on two CPU cores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from larosa.architecture import SITES
from larosa.cells import plan_cells
from larosa.command import calibration_only, main, schedule_destination, uniform
from larosa.config import RunConfig
from larosa.evaluation.curves import output_curves
from larosa.evaluation.divergence import divergence_curves
from larosa.evaluation.greedy import greedy_allocation
from larosa.maker import made_by
from larosa.methods.limits import limits_of
from larosa.pipeline import Bench, open_bench, read_documents
from larosa.prepare import prepare
from larosa.sparsity.allocation import AllocationError, Floats, allocate
from larosa.sparsity.handle import SparsityHandle
from larosa.sparsity.schedule_file import write_schedule


def run(config: RunConfig) -> Path:
    """Find the levels of `config.method` for `config.sparsity` and write them to `config.schedule.path`."""
    schedule_destination(config)
    _check_reach(config)
    documents = read_documents(config)  # the evaluation texts too: no schedule is searched on what it is judged on
    config = calibration_only(config)
    return search(config, open_bench(config, documents))


def search(config: RunConfig, bench: Bench) -> Path:
    """The same with the model loaded already. Raises ConfigError or AllocationError where nothing can be found."""
    path = schedule_destination(config)
    _check_reach(config)
    if config.allocation.around == "dense":  # the levels of the schedule play no part
        config = config.model_copy(update={"schedule": uniform("bytes")})
    cell = list(plan_cells(config).values())[-1]
    handle, _ = prepare(cell, bench, quantised=False)
    with handle:
        levels, measured = _find(config, bench, handle)
    coefficients = {site: (levels[:, i] / config.sparsity).tolist() for i, site in enumerate(SITES)}
    settings = {"allocation": config.allocation.model_dump(mode="json"), **measured}
    if config.allocation.around == "sparse":
        settings["others"] = cell.levels.source
    shape = handle.plan.shape
    write_schedule(path, shape, coefficients, made_by("larosa.allocate", config, bench.calibration.sha256, settings))
    return path


def _check_reach(config: RunConfig) -> None:
    highest = config.allocation.grid[-1]
    if config.sparsity > highest:
        raise AllocationError(f"levels run to {highest} (allocation.grid); sparsity={config.sparsity} needs more")


def _find(config: RunConfig, bench: Bench, handle: SparsityHandle) -> tuple[Floats, dict[str, Any]]:
    """Levels [layers, sites], and the curves that they follow from."""
    chosen, ids = config.allocation, bench.calibration.ids[: config.calibration.probe_sequences]
    limits = limits_of(handle.plan, bench.calibrator)
    if chosen.rule == "greedy":
        highest = chosen.grid[-1]
        return greedy_allocation(bench.model, handle, ids, limits, config.sparsity, chosen.step, highest), {}
    curves_of = output_curves if chosen.error == "output" else divergence_curves
    curves = curves_of(bench.model, handle, ids, chosen.grid, limits, chosen.around)
    weights = np.array([float(handle.plan.shape.sites[site].weights) for site in SITES])
    levels = allocate(curves, np.array(chosen.grid), weights, config.sparsity)
    return levels, {"curves": {site: curves[:, i].tolist() for i, site in enumerate(SITES)}}


if __name__ == "__main__":
    main(run)
