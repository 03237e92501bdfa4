"""From a few Top-K steps of the decoder itself: search ranges that make selection cheap, or thresholds in its place.

A range seen on a few tokens is enough, because a search that misses it goes on; thresholds are for the price of
selection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from larosa.decode.decoder import Decoder, SiteEvent
from larosa.decode.selectors import Selectors, SiteSelector

_MARGIN = 0.25


def kth_bits(decoder: Decoder, ids: Tensor, context: int = 0) -> dict[tuple[int, str], Tensor]:
    """(layer, site) -> bits of the k-th magnitude for each of the tokens ids [T]; Top-K sites only.

    They follow `context` tokens in the cache, which is read as it stands.
    """
    bits: dict[tuple[int, str], list[Tensor]] = {}

    def watch(event: SiteEvent) -> None:
        selector = decoder.selectors[event.site][event.layer]
        if selector.threshold is None and selector.k < event.x.shape[1]:
            bits.setdefault((event.layer, event.site), []).append(event.keep[:, 0])

    decoder.place(context)
    for token in ids.to(decoder.weights.device):
        decoder.watched(token.repeat(decoder.batch), watch)
    decoder.place(context)
    return {key: torch.cat(rows).cpu() for key, rows in bits.items()}


def with_search_ranges(selectors: Selectors, bits: dict[tuple[int, str], Tensor]) -> Selectors:
    """Top-K, told where to look first: the range seen, and a quarter of it to either side."""

    def with_range(site: str, layer: int, selector: SiteSelector) -> SiteSelector:
        if (layer, site) not in bits:
            return selector
        low, high = int(bits[layer, site].min()), int(bits[layer, site].max())
        margin = max(1, int(_MARGIN * (high - low)))
        return replace(selector, search_range=(max(0, low - margin), high + margin))

    return _mapped(selectors, with_range)


def with_thresholds(selectors: Selectors, bits: dict[tuple[int, str], Tensor], dtype: torch.dtype) -> Selectors:
    """Thresholds in the place of Top-K: the median of the k-th magnitudes. k is what they are expected to keep."""

    def with_threshold(site: str, layer: int, selector: SiteSelector) -> SiteSelector:
        if (layer, site) not in bits:
            return selector
        middle = bits[layer, site].median()[None]
        value = middle.view(dtype) if dtype == torch.float32 else middle.to(torch.int16).view(dtype)
        return replace(selector, threshold=float(value))

    return _mapped(selectors, with_threshold)


def _mapped(selectors: Selectors, change: Callable[[str, int, SiteSelector], SiteSelector]) -> Selectors:
    return {site: tuple(change(site, i, each) for i, each in enumerate(layers)) for site, layers in selectors.items()}
