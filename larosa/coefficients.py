"""Algorithm 1 of the LaRoSA paper: coefficients of the four sites by a grid search, written as a schedule file.

    python -m larosa.coefficients model=smollm2-135m method=larosa sparsity=0.5 schedule.path=algorithm1
    python run.py model=smollm2-135m method=larosa sparsity=0.5 schedule=file schedule.path=algorithm1

a1 and a3 run over `allocation.alphas` (0.70 ... 1.20 by 0.05), a2 = 4 - 3 a1 and a4 = (2 + M - 2 a3) / M; the smallest
perplexity wins. It is measured on the probe sequences of the calibration tokens, never on an evaluation text. With
schedule.count=bytes, the default, every cell is rescaled to the same byte-weighted level: the constraints keep the
paper's count, in which cells skip different numbers of bytes. Beside the schedule stand the whole grid as .grid.json
(written after every cell, so that a stopped search goes on), .grid.csv and .grid.png.

The algorithm as printed slips twice. alpha3 is not set back to its first value inside the loop over alpha1, so all but
the first alpha1 would meet an exhausted alpha3: here each meets the whole range. And levels above 1 are not excluded
(a1 = 0.70 makes a2 = 1.9, 1.14 at level 0.6; a rescaling to bytes may lift one above 1 too): such cells are recorded as
impossible, with the reason, and skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from larosa import models
from larosa.architecture import SITES
from larosa.cells import Cell as PlannedCell
from larosa.cells import plan_cells
from larosa.command import calibration_only, main, schedule_destination, uniform
from larosa.config import CoefficientsConfig, ConfigError, RunConfig
from larosa.errors import LarosaError
from larosa.evaluation.perplexity import perplexity
from larosa.grid import COLUMNS, Cell, Grid
from larosa.maker import made_by
from larosa.methods.limits import limits_of
from larosa.pipeline import Bench, open_bench, read_documents
from larosa.prepare import prepare
from larosa.sites import ModelShape
from larosa.sparsity.dials import Dials
from larosa.sparsity.schedule import constrained, make_levels
from larosa.sparsity.schedule_file import write_schedule
from larosa_analysis.heat_map import draw


def run(config: RunConfig) -> Path:
    """Measure the cells that the grid file lacks and write the best one to `config.schedule.path`."""
    path = schedule_destination(config)
    if config.tokens.kind == "decode_only":
        raise ConfigError("tokens=decode_only makes only generated tokens sparse: all cells would measure alike")
    asked = config
    config = calibration_only(config).model_copy(update={"schedule": uniform(config.schedule.count)})
    cell = list(plan_cells(config).values())[-1]
    shape = ModelShape.of(models.model_config(config.model))
    shaping = {key: value for key, value in cell.identity.items() if key not in ("evaluation", "texts")}
    grid = Grid(path.with_suffix(".grid.json"), shaping, config.force)
    alphas = config.allocation.alphas
    missing = [(a1, a3) for a1 in alphas for a3 in alphas if (a1, a3) not in grid]
    if missing:
        models.ensure_available(config.model)
        bench = open_bench(config, read_documents(asked))  # the evaluation texts too, which the search may not see
        _measure(cell, bench, grid, missing)
    best = grid.best(alphas)
    grid.write_csv(path.with_suffix(".grid.csv"))
    draw(grid.content(), path.with_suffix(".grid.png"))
    settings = {"count": config.schedule.count, "alphas": alphas, "found": best}
    write_schedule(
        path,
        shape,
        {site: [best[site]] * shape.layers for site in SITES},
        made_by("larosa.coefficients", config, grid.tokens_sha256, settings),
    )
    return path


def _measure(planned: PlannedCell, bench: Bench, grid: Grid, missing: Sequence[tuple[float, float]]) -> None:
    """Calibrate and apply once, then turn all sites to the levels of each missing cell."""
    config = planned.config
    grid.tokens_sha256 = bench.calibration.sha256
    ids, size = bench.calibration.ids[: config.calibration.probe_sequences], config.evaluation.perplexity.batch_size
    handle, _ = prepare(planned, bench)
    with handle:
        shape, dials = handle.plan.shape, Dials(handle, limits_of(handle.plan, bench.calibrator))
        for a1, a3 in tqdm(missing, desc="Algorithm 1", unit="cell"):
            cell: Cell = {**dict.fromkeys(COLUMNS), "h1": a1, "h3": a3}
            try:
                alphas = constrained(CoefficientsConfig(h1=a1, h2=None, h3=a3, h4=None), shape.ratio)
                cell |= alphas.model_dump()
                schedule = config.schedule.model_copy(update={"kind": "coefficients", "coefficients": alphas})
                rounding = config.method.top_k.rounding
                levels = make_levels(shape, schedule, config.sparsity, config.model.name, rounding)
                with dials.all_turned(levels.level):
                    found = perplexity(bench.model, ids, size, f"a1 = {a1:g}, a3 = {a3:g}")
                cell |= {name: found[name] for name in ("perplexity", "standard_error")}
            except LarosaError as error:
                cell["impossible"] = str(error)
            grid.add(cell)


if __name__ == "__main__":
    main(run)
