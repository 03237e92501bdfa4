"""From the target sparsity to a level per layer and site.

A schedule gives every site a coefficient alpha (section 2 of the paper); site level = alpha * target. With
`metric=weight_bytes` all levels are then multiplied by one factor, so that the weight sparsity (weights not read /
weights of the seven projections) equals the target. With `metric=nominal` they are not rescaled, as in the paper.

Coefficients per layer come from a file: see :mod:`larosa.sparsity.schedule_file`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from larosa.config.run import CoefficientsConfig, ScheduleConfig
from larosa.models.architecture import SITES
from larosa.models.sites import ModelShape
from larosa.sparsity.schedule_file import ScheduleError as ScheduleError
from larosa.sparsity.schedule_file import read_schedule
from larosa.sparsity.top_k import kept_channels


@dataclass(frozen=True)
class Levels:
    """The levels of a plan. `kept` counts channels; site -> one entry per layer."""

    target: float
    level: dict[str, tuple[float, ...]]
    kept: dict[str, tuple[int, ...]]
    source: str
    """Source of the coefficients, in words."""
    weights_per_channel: dict[str, int]
    """Site -> weights that one dropped channel saves."""

    def planned(self, site: str, layer: int, shape: ModelShape) -> float:
        """The planned level of a site: that of its integer number of kept channels."""
        return 1.0 - self.kept[site][layer] / shape.sites[site].width


def byte_weighted(
    levels: dict[str, tuple[float, ...]], shape: ModelShape, weights_per_channel: dict[str, int]
) -> float:
    """Weights not read / weights of the seven projections, for levels per site and layer."""
    skipped = sum(
        level * shape.sites[site].width * weights_per_channel[site] for site in SITES for level in levels[site]
    )
    return skipped / (shape.layers * shape.layer_weights)


def make_levels(
    shape: ModelShape, schedule: ScheduleConfig, sparsity: float, model_name: str, rounding: str = "nearest"
) -> Levels:
    """The levels of a run; `rounding`: from levels to channels (top_k.kept_channels).

    Raises ScheduleError where a site would reach 1 or keep no channel, or a schedule file is of another model.
    """
    coefficients, source = _coefficients(shape, schedule, model_name)
    raw = {site: tuple(alpha * sparsity for alpha in coefficients[site]) for site in SITES}
    total = byte_weighted(raw, shape, shape.weights_per_channel)
    if schedule.metric == "weight_bytes" and sparsity > 0:
        if total <= 0:
            raise ScheduleError("all coefficients are zero, so no level can be reached")
        raw = {site: tuple(level * sparsity / total for level in raw[site]) for site in SITES}
    for site in SITES:
        highest = max(raw[site])
        if highest >= 1.0:
            reach = sparsity / highest
            raise ScheduleError(
                f"site {site}, layer {raw[site].index(highest)} would need level {highest:.3f}: with these "
                f"coefficients ({source}) sparsity must stay below {reach:.3f}; lower it or choose another "
                "schedule, e.g. schedule=uniform"
            )
    kept = {s: tuple(kept_channels(level, shape.sites[s].width, rounding) for level in raw[s]) for s in SITES}
    empty = [site for site in SITES if min(kept[site]) < 1]
    if empty:
        raise ScheduleError(f"sparsity={sparsity} leaves no channel at {', '.join(empty)}; lower it")
    return Levels(target=sparsity, level=raw, kept=kept, source=source, weights_per_channel=shape.weights_per_channel)


def table11_constraints(alpha1: float, alpha3: float, ratio: float) -> tuple[float, float]:
    """alpha2 and alpha4 from `3 a1 + a2 = 4` and `2 a3 + M a4 = 2 + M`, M = `ratio` = I / D."""
    return 4 - 3 * alpha1, (2 + ratio - 2 * alpha3) / ratio


def constrained(alphas: CoefficientsConfig, ratio: float) -> CoefficientsConfig:
    """The coefficients, with h2 and h4 from the constraints where they are None; `ratio` = I / D. Raises
    ScheduleError."""
    a2, a4 = table11_constraints(alphas.h1, alphas.h3, ratio)
    a2, a4 = a2 if alphas.h2 is None else alphas.h2, a4 if alphas.h4 is None else alphas.h4
    if min(a2, a4) < 0:
        raise ScheduleError(
            f"with a1 = {alphas.h1:g} and a3 = {alphas.h3:g} the paper's constraints need a2 = {a2:g} and a4 = {a4:g}; "
            "a coefficient is not negative"
        )
    return CoefficientsConfig(h1=alphas.h1, h2=a2, h3=alphas.h3, h4=a4)


def _coefficients(
    shape: ModelShape, schedule: ScheduleConfig, model_name: str
) -> tuple[dict[str, tuple[float, ...]], str]:
    if schedule.kind == "file":
        path = Path(str(schedule.path)).expanduser()
        return read_schedule(path, shape), f"file {path.name}"
    if schedule.kind == "uniform":
        alphas, source = CoefficientsConfig(h1=1, h2=1, h3=1, h4=1), "uniform"
    elif schedule.kind == "coefficients":
        assert schedule.coefficients is not None  # the schema has checked it
        alphas, source = constrained(schedule.coefficients, shape.ratio), schedule.name
    elif model_name in schedule.table:
        alphas, source = schedule.table[model_name], f"Table 11 of the paper, row {model_name}"
    else:
        alphas = constrained(CoefficientsConfig(h1=0.8, h2=None, h3=0.8, h4=None), shape.ratio)
        source = f"no row for {model_name} in Table 11: a1 = a3 = 0.8, a2 and a4 from its constraints"
    return {site: (getattr(alphas, site),) * shape.layers for site in SITES}, source
