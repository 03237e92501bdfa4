"""The thresholds of a threshold method at any level, from one calibration pass."""

from __future__ import annotations

from larosa.calibration.calibrator import Calibrator
from larosa.sparsity.handle import Plan
from larosa.sparsity.level_override import ThresholdAt


def thresholds_of(plan: Plan, calibrator: Calibrator) -> ThresholdAt | None:
    """TEAL's from its histograms, any other's from counted magnitudes; None where the plan is Top-K."""
    if plan.method.selector == "top_k":
        return None
    if plan.method.name == "teal":
        return calibrator.histograms().threshold
    return calibrator.magnitudes(plan).threshold
