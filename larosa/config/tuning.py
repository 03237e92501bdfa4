"""The schema of `method.tuning`, and of the coefficients that schedules and tunings spread a sparsity by."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from larosa.config.base import Strict


class CoefficientsConfig(Strict):
    """Coefficients alpha of the four sites (section 2 of the paper): site sparsity = alpha * sparsity."""

    h1: float = Field(ge=0.0)
    """Attention input."""
    h2: float | None = Field(ge=0.0)
    """Attention output; null: follows from h1 by the paper's constraint."""
    h3: float = Field(ge=0.0)
    """MLP input."""
    h4: float | None = Field(ge=0.0)
    """MLP hidden vector; null: follows from h3 by the paper's constraint."""


class TuningConfig(Strict):
    """Gradient steps on a basis or a transform, see :mod:`larosa.search.tuning`."""

    objective: Literal["kl", "output_error"]
    """What is minimised. `kl`: divergence of the next-token distribution from the dense one. `output_error`: error of
    the projections that take h1 and h3."""
    sparsity: Annotated[float, Field(gt=0.0, lt=1.0)]
    """Weight sparsity during tuning; one tuning serves all targets."""
    coefficients: CoefficientsConfig
    """How that sparsity is spread over the sites."""
    steps: int = Field(ge=1)
    """Gradient steps."""
    batch_size: int = Field(ge=1)
    """Calibration sequences per step."""
    learning_rate: float = Field(gt=0.0)
    """Step size of Adam."""
