"""Settings of `larosa diagnose`, and of runs that compute diagnostics instead of metrics."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from larosa.config.base import Level, Strict


class DiagnosticsConfig(Strict):
    """What `larosa.cli.diagnose` computes, for which layer and site, and how much of it is kept."""

    kind: Literal["surface", "thresholds", "error_curve", "covariance"] | None
    """What a run computes instead of metrics; null: it measures metrics. `larosa.cli.diagnose` takes it as an
    argument."""
    layer: int | None = Field(ge=0)
    """The layer; null: the middle one."""
    site: Literal["h1", "h2", "h3", "h4"] | None
    """The site; null: h1, or h4 for `error_curve`."""
    levels: tuple[Level, ...] = Field(min_length=1)
    """Sparsities at which thresholds and errors are computed."""
    tokens: int = Field(ge=1)
    """Tokens of the first evaluation text, or without one of the calibration text. The first token, an attention sink,
    is skipped."""
    surface_tokens: int = Field(ge=1)
    """`surface`: tokens kept."""
    channels: int = Field(ge=1)
    """`surface`: channels kept; a wider activation is pooled by its maximum."""
