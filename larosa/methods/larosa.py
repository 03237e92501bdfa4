"""LaRoSA: Top-K in a rotated basis (arXiv 2507.01299), in forms that are named apart.

`absorbed`: the basis is absorbed into the weights, residual adapters change it between layers (the paper).
`simulated`: the norm's output, gamma in it, is rotated, Top-K'd and rotated back (the official code).
`online`: beyond the paper, an output-aware transform in front of each norm's readers (rotation.explicit).
"""

from __future__ import annotations

from larosa.calibration.calibrator import Calibrator
from larosa.config.run import MethodConfig, TokenPolicyConfig
from larosa.models.sites import ModelShape
from larosa.sparsity.handle import Plan
from larosa.sparsity.schedule import Levels


def plan(
    method: MethodConfig, shape: ModelShape, levels: Levels, tokens: TokenPolicyConfig, calibrator: Calibrator
) -> Plan:
    """The levels in the calibrated rotation, or behind the calibrated transforms."""
    if method.form == "online":
        transforms = calibrator.transforms(method)
        return calibrator.with_thresholds(Plan(method, shape, levels, tokens, rotation=None, transforms=transforms))
    return calibrator.with_thresholds(Plan(method, shape, levels, tokens, rotation=calibrator.rotation(method)))
