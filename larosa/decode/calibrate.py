"""From a few Top-K steps of the decoder itself: brackets that make selection cheap, or limits in its place.

A range seen on a few tokens is enough, because a search that misses it goes on; limits are for the price of selection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from larosa.decode.decoder import Decoder, SiteEvent
from larosa.decode.selectors import Rules, SiteRule

_MARGIN = 0.25


def kth_bits(decoder: Decoder, ids: Tensor, context: int = 0) -> dict[tuple[int, str], Tensor]:
    """(layer, site) -> bits of the k-th magnitude for each of the tokens ids [T]; Top-K sites only.

    They follow `context` tokens in the cache, which is read as it stands.
    """
    found: dict[tuple[int, str], list[Tensor]] = {}

    def watch(event: SiteEvent) -> None:
        rule = decoder.rules[event.site][event.layer]
        if rule.limit is None and rule.k < event.x.shape[1]:
            found.setdefault((event.layer, event.site), []).append(event.keep[:, 0])

    decoder.place(context)
    for token in ids.to(decoder.weights.device):
        decoder.watched(token.repeat(decoder.batch), watch)
    decoder.place(context)
    return {key: torch.cat(rows).cpu() for key, rows in found.items()}


def bracketed(rules: Rules, bits: dict[tuple[int, str], Tensor]) -> Rules:
    """Top-K, told where to look first: the range seen, and a quarter of it to either side."""

    def own(site: str, layer: int, rule: SiteRule) -> SiteRule:
        if (layer, site) not in bits:
            return rule
        low, high = int(bits[layer, site].min()), int(bits[layer, site].max())
        margin = max(1, int(_MARGIN * (high - low)))
        return replace(rule, bracket=(max(0, low - margin), high + margin))

    return _mapped(rules, own)


def limited(rules: Rules, bits: dict[tuple[int, str], Tensor], dtype: torch.dtype) -> Rules:
    """Thresholds in the place of Top-K: the median of the k-th magnitudes. k is what they are expected to keep."""

    def own(site: str, layer: int, rule: SiteRule) -> SiteRule:
        if (layer, site) not in bits:
            return rule
        middle = bits[layer, site].median()[None]
        value = middle.view(dtype) if dtype == torch.float32 else middle.to(torch.int16).view(dtype)
        return replace(rule, limit=float(value))

    return _mapped(rules, own)


def _mapped(rules: Rules, own: Callable[[str, int, SiteRule], SiteRule]) -> Rules:
    return {site: tuple(own(site, i, rule) for i, rule in enumerate(layers)) for site, layers in rules.items()}
