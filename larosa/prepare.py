"""From a planned cell to a sparse model that may be measured: plan, apply, check at level 0, quantise.

Every way to a score goes through :func:`prepare`: runs, lm-eval, searches for schedules, inspections.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from larosa.cells import Cell
from larosa.evaluation import invariance
from larosa.maker import doubts
from larosa.methods.registry import METHODS
from larosa.provenance import Stages
from larosa.quantization.model import quantise
from larosa.sites import ModelShape
from larosa.sparsity.handle import SparsityHandle, apply

if TYPE_CHECKING:
    from larosa.pipeline import Bench

log = logging.getLogger(__name__)


def prepare(
    cell: Cell, bench: Bench, stages: Stages | None = None, quantised: bool = True
) -> tuple[SparsityHandle, dict[str, Any]]:
    """Make the bench's model sparse as `cell` says; returns its handle and what was found, as records hold it.

    `quantised=False` leaves the weights as they are, for searches. Raises LarosaError, InvarianceError where the
    model at level 0 is not the dense one; the model is then dense again.
    """
    config, stages = cell.config, stages or Stages()
    for doubt in doubts(config, bench.texts):
        log.warning(doubt)
    shape = ModelShape.of(bench.model.config)
    with stages("calibrate"):
        plan = METHODS[config.method.name](config.method, shape, cell.levels, config.tokens, bench.calibrator)
    with stages("apply"):
        handle = apply(bench.model, plan, config.model.keep_weights)
    try:
        found: dict[str, Any] = {
            "memory": {
                "kept_weights_bytes": handle.kept_bytes,
                "kept_weights_on": config.model.keep_weights,
                "adapter_bytes": handle.adapter_bytes,
            }
        }
        with stages("invariance"):
            found["invariance"] = invariance.check(bench.model, handle, bench.dense)
        if quantised and config.quantization.active:
            with stages("quantise"):
                found["quantization"] = quantise(bench.model, handle, config.quantization, bench.calibration.ids)
    except BaseException:
        handle.remove()
        raise
    return handle, found
