"""WINA (arXiv 2505.19427): Top-K of `|x_i|` times the L2 norm of the weight column behind channel i.

The norm is over all projections that consume the site, so that one mask serves them. Ranking by it is optimal where
the columns are orthogonal; `basis=weight_svd` makes those of k and gate so, by an absorbed rotation per sublayer. With
`selector=threshold` the products are compared with a calibrated threshold (WAS, EMNLP 2025, there with L1 norms).
"""

from __future__ import annotations

from larosa.calibration.calibrator import Calibrator
from larosa.config.run import MethodConfig, TokenPolicyConfig
from larosa.methods.base import Method
from larosa.models.sites import ModelShape
from larosa.sparsity.handle import Plan
from larosa.sparsity.schedule import Levels


class Wina(Method):
    """Top-K or thresholds by importance, behind an absorbed rotation where the transform is asked for."""

    def plan(
        self,
        method: MethodConfig,
        shape: ModelShape,
        levels: Levels,
        token_policy: TokenPolicyConfig,
        calibrator: Calibrator,
    ) -> Plan:
        """The levels, ranked by column norms."""
        rotation = calibrator.rotation(method) if method.form == "absorbed" else None
        plan = Plan(method, shape, levels, token_policy, rotation)
        return calibrator.with_compensation(calibrator.with_thresholds(plan))
