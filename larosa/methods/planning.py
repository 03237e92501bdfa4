"""From settings to a plan, in two steps: levels, which need no weights, then the plan, which is calibrated.

Runs, lm-eval, searches for schedules, diagnostics and :func:`larosa.sparsify` all plan here.
"""

from __future__ import annotations

from typing import Protocol

from larosa.calibration.calibrator import Calibrator
from larosa.config.run import MethodConfig, ScheduleConfig, TokenPolicyConfig
from larosa.methods.registry import METHODS
from larosa.models.sites import ModelShape
from larosa.sparsity.handle import Plan
from larosa.sparsity.level_override import ThresholdAt
from larosa.sparsity.schedule import Levels


class Settings(Protocol):
    """What decides a plan: of a RunConfig, or of the Python interface's SparsityConfig."""

    @property
    def method(self) -> MethodConfig:
        """The method's settings."""

    @property
    def sparsity(self) -> float:
        """The target sparsity, a fraction in [0, 1)."""

    @property
    def schedule(self) -> ScheduleConfig:
        """How the target is spread over layers and sites."""

    @property
    def token_policy(self) -> TokenPolicyConfig:
        """Which tokens are sparsified."""


def check_method(method: MethodConfig, shape: ModelShape, tokens: int, remedy: str) -> None:
    """Refuse a method that cannot work on a model of this shape with so many calibration tokens.

    `remedy` says how to get more tokens. Raises BasisError, TransformError or CalibrationError.
    """
    METHODS[method.name].check(method, shape, tokens, remedy)


def levels_of(settings: Settings, shape: ModelShape, model_name: str) -> Levels:
    """The levels per layer and site. Raises ScheduleError where they cannot be reached."""
    method = settings.method
    return METHODS[method.name].levels(method, shape, settings.schedule, settings.sparsity, model_name)


def plan_of(settings: Settings, levels: Levels, calibrator: Calibrator) -> Plan:
    """The plan for the calibrator's model, with all that its method calibrates. Raises LarosaError."""
    shape = ModelShape.of(calibrator.model.config)
    return METHODS[settings.method.name].plan(settings.method, shape, levels, settings.token_policy, calibrator)


def thresholds_of(plan: Plan, calibrator: Calibrator) -> ThresholdAt | None:
    """The plan's thresholds at any level; None where it is Top-K."""
    return METHODS[plan.method.name].thresholds(plan, calibrator)
