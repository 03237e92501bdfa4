"""What every method answers: whether it can work on a model, its levels per layer and site, and its plan."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from larosa.calibration.calibrator import Calibrator
from larosa.calibration.statistics import CalibrationError
from larosa.config.run import MethodConfig, ScheduleConfig, TokenPolicyConfig
from larosa.models.sites import ModelShape
from larosa.rotation import bases
from larosa.rotation.online import check_block
from larosa.sparsity.handle import Plan
from larosa.sparsity.level_override import ThresholdAt
from larosa.sparsity.schedule import Levels, make_levels


class Method(ABC):
    """One method. Its settings are a MethodConfig; the object itself holds no state."""

    site_levels: ClassVar[bool] = True
    """Whether each site drops at a level of its own, so that a single site can be set to another one."""
    searched_schedules: ClassVar[bool] = True
    """Whether `larosa.cli.allocate` finds schedules for it."""

    def check(self, method: MethodConfig, shape: ModelShape, tokens: int, remedy: str) -> None:
        """Refuse what cannot work on a model of this shape with so many calibration tokens.

        `remedy` says how to get more tokens. Raises BasisError, TransformError or CalibrationError.
        """
        if method.basis == "hadamard":
            bases.hadamard_factors(shape.hidden_size)
        if method.form == "online":
            check_block(shape.hidden_size, method.block_size, method.transform_dtype)
        if method.basis in ("pca", "output_aware") and tokens < shape.hidden_size:
            raise CalibrationError(
                f"{tokens} calibration tokens cannot span {shape.hidden_size} dimensions: {remedy} "
                "(the paper: 16 x 2048)"
            )

    def levels(
        self, method: MethodConfig, shape: ModelShape, schedule: ScheduleConfig, sparsity: float, model_name: str
    ) -> Levels:
        """The levels per layer and site: the schedule's. Raises ScheduleError where they cannot be reached."""
        return make_levels(shape, schedule, sparsity, model_name, method.rounding)

    @abstractmethod
    def plan(
        self,
        method: MethodConfig,
        shape: ModelShape,
        levels: Levels,
        token_policy: TokenPolicyConfig,
        calibrator: Calibrator,
    ) -> Plan:
        """The levels with all that the method calibrates: bases, transforms, thresholds, low-rank pairs."""

    def thresholds(self, plan: Plan, calibrator: Calibrator) -> ThresholdAt | None:
        """The thresholds at any level, from one calibration pass; None where the plan is Top-K."""
        return None if plan.method.selector == "top_k" else calibrator.magnitudes(plan).threshold
