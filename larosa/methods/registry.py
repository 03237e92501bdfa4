"""From a method's name to the function that makes its plan."""

from __future__ import annotations

from collections.abc import Callable

from larosa.calibration.calibrator import Calibrator
from larosa.config.run import MethodConfig, TokenPolicyConfig
from larosa.methods import cats, dense, larosa, magnitude, r_sparse, teal, wina
from larosa.models.sites import ModelShape
from larosa.sparsity.handle import Plan
from larosa.sparsity.schedule import Levels

PlanFunction = Callable[[MethodConfig, ModelShape, Levels, TokenPolicyConfig, Calibrator], Plan]

METHODS: dict[str, PlanFunction] = {
    "dense": dense.plan,
    "magnitude": magnitude.plan,
    "wina": wina.plan,
    "teal": teal.plan,
    "cats": cats.plan,
    "r_sparse": r_sparse.plan,
    "larosa": larosa.plan,
}
