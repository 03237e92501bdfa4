"""The dense model: nothing is dropped, whatever the target sparsity."""

from __future__ import annotations

from larosa.calibration.calibrator import Calibrator
from larosa.config.run import MethodConfig, ScheduleConfig, TokenPolicyConfig
from larosa.methods.base import Method
from larosa.models.architecture import SITES
from larosa.models.sites import ModelShape
from larosa.sparsity.handle import Plan
from larosa.sparsity.schedule import Levels


class Dense(Method):
    """Level 0 at every site."""

    searched_schedules = False

    def levels(
        self, method: MethodConfig, shape: ModelShape, schedule: ScheduleConfig, sparsity: float, model_name: str
    ) -> Levels:
        """Level 0 everywhere; neither the schedule nor the target has a say."""
        level = dict.fromkeys(SITES, (0.0,) * shape.layers)
        kept = {site: (shape.sites[site].width,) * shape.layers for site in SITES}
        return Levels(0.0, level, kept, "dense", shape.weights_per_channel)

    def plan(
        self,
        method: MethodConfig,
        shape: ModelShape,
        levels: Levels,
        token_policy: TokenPolicyConfig,
        calibrator: Calibrator,
    ) -> Plan:
        """Nothing is calibrated."""
        return Plan(method, shape, levels, token_policy, rotation=None)
