"""TEAL (arXiv 2408.14690): an entry is zero where its magnitude is at most a calibrated threshold.

One threshold a layer and site, `t = icdf(0.5 + level / 2)` of the activation's histogram on the dense model. Here
with levels from the run's schedule (uniform is TEAL's simplest setting) and in the model's own basis.
"""

from __future__ import annotations

from larosa.calibration.calibrator import Calibrator
from larosa.config.run import MethodConfig, TokenPolicyConfig
from larosa.models.architecture import SITES
from larosa.models.sites import ModelShape
from larosa.sparsity.handle import Plan
from larosa.sparsity.schedule import Levels


def plan(
    method: MethodConfig, shape: ModelShape, levels: Levels, tokens: TokenPolicyConfig, calibrator: Calibrator
) -> Plan:
    """A threshold for every site of every layer."""
    found = calibrator.histograms()
    thresholds = {
        site: tuple(found.threshold(layer, site, levels.level[site][layer]) for layer in range(shape.layers))
        for site in SITES
    }
    own = method.coordinates
    return Plan(method, shape, levels, tokens, rotation=None, thresholds=thresholds, calibrated_in=own)
