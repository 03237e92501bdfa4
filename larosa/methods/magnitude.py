"""Magnitude Top-K: per token the largest magnitudes stay, in the model's own basis, without calibration.

With `selector=threshold` the same levels are met on average by a calibrated threshold instead.
"""

from __future__ import annotations

from larosa.calibration.calibrator import Calibrator
from larosa.config.run import MethodConfig, TokenPolicyConfig
from larosa.methods.base import Method
from larosa.models.sites import ModelShape
from larosa.sparsity.handle import Plan
from larosa.sparsity.schedule import Levels


class Magnitude(Method):
    """Top-K or thresholds without a rotation."""

    def plan(
        self,
        method: MethodConfig,
        shape: ModelShape,
        levels: Levels,
        token_policy: TokenPolicyConfig,
        calibrator: Calibrator,
    ) -> Plan:
        """The levels as they are."""
        plan = Plan(method, shape, levels, token_policy, rotation=None)
        return calibrator.with_compensation(calibrator.with_thresholds(plan))
