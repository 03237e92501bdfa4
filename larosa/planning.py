"""What a plan needs before it calibrates, in a run and in Python: a possible method, and levels within reach."""

from __future__ import annotations

from larosa.calibration.statistics import CalibrationError
from larosa.config import MethodConfig, ScheduleConfig
from larosa.methods import cats, r_sparse
from larosa.rotation import bases
from larosa.rotation.explicit import check_block
from larosa.sites import ModelShape
from larosa.sparsity.schedule import Levels, make_levels


def check_method(method: MethodConfig, shape: ModelShape, tokens: int, remedy: str) -> None:
    """Refuse a method that cannot work on a model of this shape with so many calibration tokens.

    `remedy` says how to get more tokens. Raises BasisError, TransformError or CalibrationError.
    """
    if method.basis == "hadamard":
        bases.hadamard_factors(shape.hidden_size)
    if method.form == "explicit":
        check_block(shape.hidden_size, method.block_size, method.transform_storage)
    if method.basis in ("pca", "output_aware") and tokens < shape.hidden_size:
        raise CalibrationError(
            f"{tokens} calibration tokens cannot span {shape.hidden_size} dimensions: {remedy} (the paper: 16 x 2048)"
        )


def plan_levels(
    method: MethodConfig, shape: ModelShape, schedule: ScheduleConfig, sparsity: float, model_name: str
) -> Levels:
    """The levels of a method: the schedule's, or of CATS its own. Raises ScheduleError where they cannot be reached."""
    if method.name == "cats":
        return cats.levels(shape, sparsity)
    levels = make_levels(shape, schedule, sparsity, model_name, method.top_k.rounding)
    if method.name == "r_sparse":
        r_sparse.candidates(method, shape, levels)  # shares out of reach are refused here
    return levels
