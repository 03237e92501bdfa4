"""From a planned run to a sparse model that may be measured: plan, apply, check at level 0, quantise.

Every way to a score goes through :func:`prepare`: runs, lm-eval, searches for schedules, diagnostics.
"""

from __future__ import annotations

import logging
from typing import Any

from larosa.evaluation import parity
from larosa.experiment.plan_runs import PlannedRun
from larosa.experiment.provenance import Stages
from larosa.experiment.schedule_provenance import schedule_warnings
from larosa.experiment.session import Session
from larosa.methods.planning import plan_of
from larosa.quantization.apply import quantise
from larosa.sparsity.handle import SparsityHandle, apply

log = logging.getLogger(__name__)


def prepare(
    planned: PlannedRun, session: Session, stages: Stages | None = None, quantised: bool = True
) -> tuple[SparsityHandle, dict[str, Any]]:
    """Make the session's model sparse as `planned` says; returns its handle and what records say of it.

    `quantised=False` does not quantise, for searches. Raises LarosaError, ParityError where the
    model at level 0 is not the dense one; the model is then dense again.
    """
    config, stages = planned.config, stages or Stages()
    for warning in schedule_warnings(config, session.texts):
        log.warning(warning)
    with stages("calibrate"):
        plan = plan_of(config, planned.levels, session.calibrator)
    with stages("apply"):
        handle = apply(session.model, plan, config.model.dense_weights_device)
    try:
        prepared: dict[str, Any] = {
            "memory": {
                "dense_weights_bytes": handle.kept_bytes,
                "dense_weights_device": config.model.dense_weights_device,
                "adapter_bytes": handle.adapter_bytes,
            }
        }
        with stages("parity"):
            prepared["parity"] = parity.check(session.model, handle, session.dense)
        if quantised and config.quantization.active:
            with stages("quantise"):
                prepared["quantization"] = quantise(session.model, handle, config.quantization, session.calibration.ids)
    except BaseException:
        handle.remove()
        raise
    return handle, prepared
