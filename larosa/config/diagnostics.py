"""Settings of `python -m larosa.cli.diagnose`, and of runs that inspect instead of measuring."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from larosa.config.base import Level, Strict


class DiagnosticsConfig(Strict):
    """Where to look, and how much of it to keep."""

    kind: Literal["surface", "thresholds", "error_curve", "covariance"] | None
    """What a run inspects; null: it measures. `python -m larosa.cli.diagnose` names its own."""
    layer: int | None = Field(ge=0)
    """Null: the middle one."""
    site: Literal["h1", "h2", "h3", "h4"] | None
    """Null: h1, for error_curve h4."""
    levels: tuple[Level, ...] = Field(min_length=1)
    tokens: int = Field(ge=1)
    """Of the first evaluation text (without one, of the calibration text) from the second on: the first is a sink."""
    surface_tokens: int = Field(ge=1)
    channels: int = Field(ge=1)
    """Of a surface; wider ones are pooled by their maximum."""
