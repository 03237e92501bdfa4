"""The dense model: nothing is dropped, whatever level was asked for beside it."""

from __future__ import annotations

from larosa.calibration.calibrator import Calibrator
from larosa.config.run import MethodConfig, TokenPolicyConfig
from larosa.models.architecture import SITES
from larosa.models.sites import ModelShape
from larosa.sparsity.handle import Plan
from larosa.sparsity.schedule import Levels


def plan(
    method: MethodConfig,
    shape: ModelShape,
    _levels: Levels,
    tokens: TokenPolicyConfig,
    _calibrator: Calibrator,
) -> Plan:
    """Level 0 at every site."""
    level = dict.fromkeys(SITES, (0.0,) * shape.layers)
    kept = {site: (shape.sites[site].width,) * shape.layers for site in SITES}
    return Plan(method, shape, Levels(0.0, level, kept, "dense", shape.weights_per_channel), tokens, rotation=None)
