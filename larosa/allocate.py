"""Write a schedule file of levels per layer and site by equal marginal error, for runs to use by name.

    python -m larosa.allocate model=smollm2-135m method=magnitude sparsity=0.5 schedule.path=mine.json
    python run.py model=smollm2-135m method=magnitude sparsity=0.5 schedule=file schedule.path=mine.json

The errors are those of each layer's output on the probe sequences of the calibration text, one site sparse at a time.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from larosa.architecture import SITES
from larosa.cells import plan_cells
from larosa.config import ConfigError, RunConfig
from larosa.errors import LarosaError
from larosa.evaluation.curves import error_curves
from larosa.methods.registry import METHODS
from larosa.pipeline import open_bench, read_documents
from larosa.sites import ModelShape
from larosa.sparsity.allocation import allocate
from larosa.store import write_atomically

GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def run(config: RunConfig) -> Path:
    """Measure the curves of `config.method`, allocate `config.sparsity`, write `config.schedule.path`."""
    if not config.schedule.path:
        raise ConfigError("schedule.path=FILE.json says where the schedule goes")
    if config.sparsity == 0:
        raise ConfigError("sparsity=0 leaves nothing to allocate")
    if config.method.name not in ("magnitude", "wina", "larosa") or config.method.rule != "top_k":
        raise ConfigError("levels are allocated for Top-K methods: magnitude, wina, larosa")
    cell = list(plan_cells(config).values())[-1]
    bench = open_bench(config, read_documents(config))
    shape = ModelShape.of(bench.model.config)
    plan = METHODS[config.method.name](config.method, shape, cell.levels, config.tokens, bench.calibrator)
    ids = bench.calibration.ids[: config.calibration.probe_sequences]
    curves = error_curves(bench.model, plan, ids, GRID)
    weights = np.array([float(shape.sites[site].weights) for site in SITES])
    levels = allocate(curves, np.array(GRID), weights, config.sparsity)
    content = {
        "schema": 1,
        "layers": shape.layers,
        "widths": {site: shape.sites[site].width for site in SITES},
        "levels": {site: (levels[:, i] / config.sparsity).tolist() for i, site in enumerate(SITES)},
        "made_by": {
            "method": config.method.label,
            "sparsity": config.sparsity,
            "tokens_sha256": bench.calibration.sha256,
        },
    }
    path = Path(config.schedule.path).expanduser()
    write_atomically(path, json.dumps(content, indent=1).encode())
    return path


def main() -> None:
    """Read the settings as `run.py` does."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s %(levelname)s] %(message)s", datefmt="%H:%M:%S")
    conf = Path(__file__).resolve().parent.parent / "conf"
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            tree = OmegaConf.to_container(compose("config", sys.argv[1:]), resolve=True, throw_on_missing=True)
        logging.getLogger(__name__).info("wrote %s", run(RunConfig.parse(tree)))  # type: ignore[arg-type]
    except (LarosaError, OSError) as error:
        logging.getLogger(__name__).error("%s", error)
        sys.exit(2)


if __name__ == "__main__":
    main()
