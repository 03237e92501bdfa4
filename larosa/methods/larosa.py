"""LaRoSA: Top-K in a rotated basis (arXiv 2507.01299), in forms that are named apart.

`absorbed`: the basis is absorbed into the weights, residual adapters change it between layers (the paper).
`simulated`: the norm's output, gamma in it, is rotated, Top-K'd and rotated back (the official code).
`online`: beyond the paper, an output-aware transform in front of each norm's consumers (rotation.online).
"""

from __future__ import annotations

from larosa.calibration.calibrator import Calibrator
from larosa.config.run import MethodConfig, TokenPolicyConfig
from larosa.methods.base import Method
from larosa.models.sites import ModelShape
from larosa.sparsity.handle import Plan
from larosa.sparsity.schedule import Levels


class Larosa(Method):
    """Top-K or thresholds in a calibrated rotation, or behind calibrated online transforms."""

    def plan(
        self,
        method: MethodConfig,
        shape: ModelShape,
        levels: Levels,
        token_policy: TokenPolicyConfig,
        calibrator: Calibrator,
    ) -> Plan:
        """The levels in the rotated basis of `method.form`."""
        if method.form == "online":
            plan = Plan(method, shape, levels, token_policy, rotation=None, transforms=calibrator.transforms(method))
        else:
            plan = Plan(method, shape, levels, token_policy, rotation=calibrator.rotation(method))
        return calibrator.with_compensation(calibrator.with_thresholds(plan))
