"""TEAL (arXiv 2408.14690): an entry is zero where its magnitude is at most a calibrated threshold.

One threshold per layer and site, `t = icdf(0.5 + level / 2)` of the activation's histogram on the dense model. Here
with levels from the run's schedule (uniform is TEAL's simplest setting) and in the model's own basis.
"""

from __future__ import annotations

from larosa.calibration.calibrator import Calibrator
from larosa.config.run import MethodConfig, TokenPolicyConfig
from larosa.methods.base import Method
from larosa.models.architecture import SITES
from larosa.models.sites import ModelShape
from larosa.sparsity.handle import Plan
from larosa.sparsity.level_override import ThresholdAt
from larosa.sparsity.schedule import Levels


class Teal(Method):
    """A threshold per layer and site, from histograms of the dense model's activations."""

    def plan(
        self,
        method: MethodConfig,
        shape: ModelShape,
        levels: Levels,
        token_policy: TokenPolicyConfig,
        calibrator: Calibrator,
    ) -> Plan:
        """A threshold for every site of every layer."""
        histograms = calibrator.histograms()
        thresholds = {
            site: tuple(histograms.threshold(layer, site, levels.level[site][layer]) for layer in range(shape.layers))
            for site in SITES
        }
        plan = Plan(
            method, shape, levels, token_policy,
            rotation=None, thresholds=thresholds, calibrated_in=method.coordinates,
        )  # fmt: skip
        return calibrator.with_compensation(plan)

    def thresholds(self, plan: Plan, calibrator: Calibrator) -> ThresholdAt | None:
        """Those of the histograms at any level."""
        return calibrator.histograms().threshold
