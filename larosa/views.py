"""What `python -m larosa.inspect` measures on the methods of a run: surfaces, thresholds, error curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from larosa.architecture import SITES
from larosa.calibration.tokens import TokenBlock
from larosa.cells import Cell
from larosa.config import ConfigError, RunConfig
from larosa.evaluation.error_curve import error_curve
from larosa.evaluation.surface import pooling, surface
from larosa.evaluation.tap import activations, dense_activations
from larosa.methods.limits import limits_of
from larosa.pipeline import Bench
from larosa.prepare import prepare
from larosa.sparsity.dials import Dials, LimitAt
from larosa.sparsity.handle import Plan, SparsityHandle
from larosa.sparsity.top_k import kept_channels, kth_magnitude, theoretical_error

Values = dict[str, Any]


@contextmanager
def _applied(cell: Cell, bench: Bench) -> Iterator[tuple[SparsityHandle, Plan]]:
    handle, _ = prepare(cell, bench)
    with handle:
        yield handle, handle.plan


def text_of(bench: Bench) -> TokenBlock:
    """The first evaluation text, or the calibration's."""
    return next(iter(bench.texts.values()), bench.calibration)


def _place(config: RunConfig, model: PreTrainedModel, site: str) -> tuple[int, str]:
    layers = int(model.config.num_hidden_layers)
    return (layers // 2 if config.inspect.layer is None else config.inspect.layer), config.inspect.site or site


def _ids(config: RunConfig, bench: Bench, tokens: int) -> Tensor:
    """[1 + tokens]: the first, which attention dumps on, is there to be attended to and is not shown."""
    row = text_of(bench).ids[0]
    if len(row) < 1 + tokens:
        raise ConfigError(
            f"{tokens} tokens behind the first are to be shown, a block has {len(row)}: lower inspect.tokens"
        )
    return row[: 1 + tokens]


def _surface(config: RunConfig, cells: dict[str, Cell], bench: Bench) -> Values:
    """Figure 1: the magnitudes of one block's input, in the model's own basis and in each method's."""
    layer, site = _place(config, bench.model, "h1")
    count, channels = config.inspect.surface_tokens, config.inspect.channels
    ids, after = _ids(config, bench, count), {}
    for label, cell in cells.items():
        with _applied(cell, bench) as (handle, _):
            _, _, z = activations(bench.model, handle, ids, layer, site)
        after[label] = surface(z[1:], channels)
    x = dense_activations(bench.model, ids, layer, site)
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


def _thresholds(config: RunConfig, cells: dict[str, Cell], bench: Bench) -> Values:
    """Figure 3 a and b: thresholds by layer and level, and what single tokens would need."""
    (label, cell), levels = next(iter(cells.items())), config.inspect.levels
    layer, site = _place(config, bench.model, "h1")
    with _applied(cell, bench) as (handle, plan):
        _, _, z = activations(bench.model, handle, _ids(config, bench, config.inspect.tokens), layer, site)
    limit: LimitAt = limits_of(plan, bench.calibrator) or bench.calibrator.magnitudes(plan).limit
    k = kept_channels(config.sparsity, z.shape[1], cell.config.method.top_k.rounding)
    needed = kth_magnitude(z[1:].float(), k)[:, 0].tolist()
    layers = range(plan.shape.layers)
    return {
        "method": label,
        "levels": levels,
        "calibrated": {s: [[limit(i, s, level) for i in layers] for level in levels] for s in SITES},
        "needed": {
            "site": site,
            "layer": layer,
            "level": config.sparsity,
            "calibrated": limit(layer, site, config.sparsity),
            "per_token": needed,
        },
    }


def _error_curve(config: RunConfig, cells: dict[str, Cell], bench: Bench) -> Values:
    """Figure 5: the relative output error of one site's readers by level."""
    layer, site = _place(config, bench.model, "h4")
    ids, measured, realised = _ids(config, bench, config.inspect.tokens), {}, {}
    for label, cell in cells.items():
        with _applied(cell, bench) as (handle, plan):
            at, x, z = activations(bench.model, handle, ids, layer, site)
            dials = Dials(handle, limits_of(plan, bench.calibrator) if plan.thresholds is not None else None)
            measured[label], realised[label] = error_curve(at, x[1:], z[1:], dials, config.inspect.levels)
    return {
        "layer": layer,
        "site": site,
        "tokens": config.inspect.tokens,
        "levels": config.inspect.levels,
        "theory": [theoretical_error(level) for level in config.inspect.levels],
        "measured": measured,
        "realised": realised,
    }


KINDS: dict[str, Callable[[RunConfig, dict[str, Cell], Bench], Values]] = {
    "surface": _surface,
    "thresholds": _thresholds,
    "error_curve": _error_curve,
}
