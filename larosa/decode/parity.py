"""No time without this: the decoder computes what it is said to compute, or ParityError.

:func:`check_plain` needs no transformers model: masks are bit for bit those of the selectors, every product and every
vector is within rounding of float64, and so are the logits of the whole; the graph repeats its bits.
:func:`larosa.decode.parity_model.check_model` holds the decoder against the evaluated model.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from larosa.decode import ops, plain
from larosa.decode.decoder import Decoder, SiteEvent
from larosa.decode.selectors import Selectors, SiteSelector
from larosa.decode.weights import DecodeWeights
from larosa.errors import ParityError
from larosa.evaluation.parity import LARGEST_BOUND, bound
from larosa.models.architecture import SITES
from larosa.sparsity.top_k import keep_mask

_ROUNDINGS = 4
"""Results rounded on the way to a vector or a product, one after another."""


def site_bound(dtype: torch.dtype, length: int) -> float:
    """The largest relative error of one product over `length` channels that rounding explains."""
    accumulator = torch.finfo(torch.float32).eps / 2
    return _ROUNDINGS * (torch.finfo(dtype).eps / 2 + math.sqrt(length) * accumulator)


def distance(actual: Tensor, expected: Tensor) -> float:
    """Relative Euclidean distance; NaN counts as infinite."""
    exact = expected.double()
    apart = float((actual.double() - exact).norm() / exact.norm().clamp_min(1e-30))
    return apart if math.isfinite(apart) else math.inf


def require(what: str, error: float, allowed: float) -> None:
    """Raise ParityError where `error` exceeds `allowed`."""
    if not error <= allowed:
        raise ParityError(f"{what} is {error:.2e}, rounding explains at most {allowed:.2e}: the decoder is wrong")


def expected_mask(x: Tensor, selector: SiteSelector) -> Tensor:
    """What the selector keeps of x [B, width] itself; a gated selector acts before x, see :func:`_check_mlp_gate`."""
    if selector.threshold is not None:
        return x.abs() > selector.threshold
    return keep_mask(x, selector.k, selector.ties)


def _check_mlp_gate(layer: int, event: SiteEvent, selector: SiteSelector) -> None:
    """Neurons stay where |silu(gate)|, in float64, exceeds the threshold, but for a rounding of either."""
    gate, up = event.before.double().chunk(2, -1)
    size, threshold = torch.nn.functional.silu(gate).abs(), float(selector.threshold or 0.0)
    slack = 2 * torch.finfo(event.x.dtype).eps * threshold
    lost = (size > threshold + slack) & (up != 0) & (event.x == 0)
    kept = (size < threshold - slack) & (event.x != 0)
    tiny = torch.finfo(event.x.dtype).tiny  # a product may vanish
    if bool((lost & ((size * up).abs() > tiny)).any()) or bool(kept.any()):
        raise ParityError(f"layer {layer}, {event.site}: the neurons are not those of {selector}")


def stepped(decoder: Decoder, ids: Tensor) -> Tensor:
    """Logits [T, vocabulary] of ids [T], fed one by one from position 0."""
    decoder.place(0)
    return torch.cat([decoder.step(int(token)).clone() for token in ids])


class _SiteChecks:
    """Watches a decoder and holds every site against float64."""

    def __init__(self, weights: DecodeWeights, selectors: Selectors) -> None:
        self.weights, self.selectors = weights, selectors
        self.masks: dict[tuple[int, str], list[Tensor]] = {}
        self.worst = {"vector": 0.0, "product": 0.0}

    def __call__(self, event: SiteEvent) -> None:
        layer, site, layer_weights = event.layer, event.site, self.weights.layers[event.layer]
        mask, selector = ops.selected_mask(event.x, event.keep), self.selectors[event.site][event.layer]
        if selector.gated:
            _check_mlp_gate(layer, event, selector)
        elif not torch.equal(mask, expected_mask(event.x, selector)):
            raise ParityError(f"layer {layer}, {site}: the mask is not that of {selector}")
        self.masks.setdefault((layer, site), []).append(mask)
        allowed = site_bound(self.weights.dtype, event.x.shape[1])
        exact = plain.entered(layer_weights, site, event.before.double(), float(self.weights.config.rms_norm_eps))
        if selector.gated:
            exact = exact * mask
        self._hold("vector", event, distance(event.x, exact), allowed)
        expected = plain.product(layer_weights, site, event.x.double() * mask)
        if event.residual is not None:
            expected = expected + event.residual.double()
        self._hold("product", event, distance(event.after, expected), allowed)

    def _hold(self, what: str, event: SiteEvent, error: float, allowed: float) -> None:
        self.worst[what] = max(self.worst[what], error)
        require(f"layer {event.layer}, {event.site}: the relative error of the {what}", error, allowed)


@torch.no_grad()
def check_plain(
    weights: DecodeWeights, selectors: Selectors, tokens: int = 8, seed: int = 0, **how: Any
) -> dict[str, Any]:
    """Hold the decoder against float64 torch on random tokens; `how` goes to it. Raises ParityError.

    The weights are converted one by one, so it is meant for a cut of a large model.
    """
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(weights.embedding), (tokens,), generator=draw).to(weights.device)
    decoder = Decoder(weights, selectors, tokens, **how)
    checks = _SiteChecks(weights, selectors)
    watched = torch.cat([decoder.watched(token[None], checks) for token in ids])
    once, twice = stepped(decoder, ids), stepped(decoder, ids)
    if not torch.equal(once, twice):
        raise ParityError("two runs of the same tokens differ in their bits")
    if not torch.equal(once, watched):
        raise ParityError("the graph's logits differ from those of the same step outside of it")
    masks = {key: torch.cat(rows) for key, rows in checks.masks.items()}
    exact, kappa = plain.logits(weights, ids, masks)
    longest = max(site.width for site in weights.shape.sites.values())
    allowed, error = min(bound(weights.dtype, kappa, longest), LARGEST_BOUND), distance(once, exact)
    require("the relative error of the logits", error, allowed)
    return {
        "against": "float64 torch at the same masks",
        "layers": len(weights.layers),
        "tokens": tokens,
        "backend": decoder.backend,
        "relative_logits_error": error,
        "bound": allowed,
        "worst_site_error": checks.worst,
        "achieved_sparsity": levels(masks),
        "bit_identical": True,
    }


def levels(masks: dict[tuple[int, str], Tensor]) -> dict[str, float]:
    """Site -> the share of dropped entries, mean over layers and tokens."""
    dropped: dict[str, list[float]] = {site: [] for site in SITES}
    for (_, site), mask in masks.items():
        dropped[site].append(1.0 - float(mask.double().mean()))
    return {site: sum(fractions) / len(fractions) for site, fractions in dropped.items()}
