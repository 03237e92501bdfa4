"""Numbers that may be recorded: what a model gives without NaN or infinity."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from larosa.errors import LarosaError


class EvaluationError(LarosaError):
    """A measurement is NaN or infinite."""


def require_finite(logits: Tensor, what: str, dtype: torch.dtype | None = None) -> Tensor:
    """The logits themselves. Raises EvaluationError that names `what` was measured if one of them is not finite.

    dtype: the model's, where the logits are not of it.
    """
    if not bool(logits.isfinite().all()):
        raise EvaluationError(f"{what}: the model's logits hold NaN or infinity; {advice(dtype or logits.dtype)}")
    return logits


def finite(value: float, what: str) -> float:
    """The value itself. Raises EvaluationError if it is NaN or infinite."""
    if not math.isfinite(value):
        raise EvaluationError(f"{what} is {value}: the model's activations hold NaN or infinity, or overflow")
    return value


def advice(dtype: torch.dtype) -> str:
    """What to do about NaN in a model of this dtype."""
    if dtype == torch.float16:
        return "float16 overflows in some models: set model.dtype=bfloat16 or float32, or check the weights"
    if dtype == torch.bfloat16:
        return "check the weights, or set model.dtype=float32"
    return "check the weights: one NaN among them is enough"


def unusable_weight(model: nn.Module) -> str | None:
    """The name of the first parameter with NaN or infinity, or None."""
    return next((name for name, weight in model.named_parameters() if not bool(weight.isfinite().all())), None)
