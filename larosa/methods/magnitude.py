"""Magnitude Top-K: per token the largest magnitudes stay, in the model's own basis, without calibration.

With `rule=threshold` the same levels are met on average by a calibrated limit instead."""

from __future__ import annotations

from larosa.calibration.calibrator import Calibrator
from larosa.config.run import MethodConfig, TokenPolicyConfig
from larosa.models.sites import ModelShape
from larosa.sparsity.handle import Plan
from larosa.sparsity.schedule import Levels


def plan(
    method: MethodConfig,
    shape: ModelShape,
    levels: Levels,
    tokens: TokenPolicyConfig,
    calibrator: Calibrator,
) -> Plan:
    """The levels as they are, no rotation."""
    return calibrator.with_thresholds(Plan(method, shape, levels, tokens, rotation=None))
