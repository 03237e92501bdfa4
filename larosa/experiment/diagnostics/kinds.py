"""What `larosa diagnose` measures on the methods of a run: surfaces, thresholds, error curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from larosa.config.run import ConfigError, RunConfig
from larosa.data.tokens import TokenBlock
from larosa.evaluation.tap import activations, dense_activations
from larosa.experiment.diagnostics.error_curve import error_curve
from larosa.experiment.diagnostics.surface import pooling, surface
from larosa.experiment.plan_runs import PlannedRun
from larosa.experiment.prepare import prepare
from larosa.experiment.session import Session
from larosa.methods.planning import thresholds_of
from larosa.models.architecture import SITES
from larosa.sparsity.handle import Plan, SparsityHandle
from larosa.sparsity.level_override import LevelOverrides, ThresholdAt
from larosa.sparsity.top_k import kept_channels, kth_magnitude, theoretical_error

Values = dict[str, Any]


@contextmanager
def _applied(planned: PlannedRun, session: Session) -> Iterator[tuple[SparsityHandle, Plan]]:
    handle, _ = prepare(planned, session)
    with handle:
        yield handle, handle.plan


def text_of(session: Session) -> TokenBlock:
    """The first evaluation text, or the calibration's."""
    return next(iter(session.texts.values()), session.calibration)


def _place(config: RunConfig, model: PreTrainedModel, site: str) -> tuple[int, str]:
    layers = int(model.config.num_hidden_layers)
    return (
        layers // 2 if config.diagnostics.layer is None else config.diagnostics.layer
    ), config.diagnostics.site or site


def _ids(config: RunConfig, session: Session, tokens: int) -> Tensor:
    """[1 + tokens]: the first, which attention dumps on, is there to be attended to and is not shown."""
    row = text_of(session).ids[0]
    if len(row) < 1 + tokens:
        raise ConfigError(
            f"{tokens} tokens behind the first are to be shown, a block has {len(row)}: lower diagnostics.tokens"
        )
    return row[: 1 + tokens]


def _surface(config: RunConfig, runs: dict[str, PlannedRun], session: Session) -> Values:
    """Figure 1: the magnitudes of one block's input, in the model's own basis and in each method's."""
    layer, site = _place(config, session.model, "h1")
    count, channels = config.diagnostics.surface_tokens, config.diagnostics.channels
    ids, after = _ids(config, session, count), {}
    for label, planned in runs.items():
        with _applied(planned, session) as (handle, _):
            _, _, z = activations(session.model, handle, ids, layer, site)
        after[label] = surface(z[1:], channels)
    x = dense_activations(session.model, ids, layer, site)
    before, width = surface(x[1:], channels), x.shape[1]
    size = pooling(width, channels)
    return {
        "layer": layer,
        "site": site,
        "tokens": count,
        "channels": len(before[0]),
        "pooling": f"the largest magnitude of {size} neighbouring channels of {width}" if size > 1 else "none",
        "first_token": 1,
        "before": before,
        "after": after,
    }


def _thresholds(config: RunConfig, runs: dict[str, PlannedRun], session: Session) -> Values:
    """Figure 3 a and b: thresholds by layer and level, and what single tokens would need."""
    (label, planned), levels = next(iter(runs.items())), config.diagnostics.levels
    layer, site = _place(config, session.model, "h1")
    with _applied(planned, session) as (handle, plan):
        _, _, z = activations(session.model, handle, _ids(config, session, config.diagnostics.tokens), layer, site)
    threshold_at: ThresholdAt = thresholds_of(plan, session.calibrator) or session.calibrator.magnitudes(plan).threshold
    k = kept_channels(config.sparsity, z.shape[1], planned.config.method.rounding)
    needed = kth_magnitude(z[1:].float(), k)[:, 0].tolist()
    layers = range(plan.shape.layers)
    return {
        "method": label,
        "levels": levels,
        "calibrated": {s: [[threshold_at(i, s, level) for i in layers] for level in levels] for s in SITES},
        "needed": {
            "site": site,
            "layer": layer,
            "level": config.sparsity,
            "calibrated": threshold_at(layer, site, config.sparsity),
            "per_token": needed,
        },
    }


def _error_curve(config: RunConfig, runs: dict[str, PlannedRun], session: Session) -> Values:
    """Figure 5: the relative output error of one site's consumers by level."""
    layer, site = _place(config, session.model, "h4")
    ids, measured, achieved = _ids(config, session, config.diagnostics.tokens), {}, {}
    for label, planned in runs.items():
        with _applied(planned, session) as (handle, plan):
            at, x, z = activations(session.model, handle, ids, layer, site)
            overrides = LevelOverrides(
                handle, thresholds_of(plan, session.calibrator) if plan.thresholds is not None else None
            )
            measured[label], achieved[label] = error_curve(at, x[1:], z[1:], overrides, config.diagnostics.levels)
    return {
        "layer": layer,
        "site": site,
        "tokens": config.diagnostics.tokens,
        "levels": config.diagnostics.levels,
        "theory": [theoretical_error(level) for level in config.diagnostics.levels],
        "measured": measured,
        "achieved": achieved,
    }


KINDS: dict[str, Callable[[RunConfig, dict[str, PlannedRun], Session], Values]] = {
    "surface": _surface,
    "thresholds": _thresholds,
    "error_curve": _error_curve,
}
