"""Which entries a decode step keeps at each site: k largest, or what exceeds a calibrated threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from larosa.decode.errors import DecodeError
from larosa.models.architecture import SITES
from larosa.models.sites import ModelShape
from larosa.sparsity.top_k import kept_channels

if TYPE_CHECKING:
    from larosa.sparsity.handle import SparsityHandle


@dataclass(frozen=True)
class SiteSelector:
    """One site of one layer."""

    k: int
    """Entries that stay; the width drops nothing. With a threshold: as many as are expected to, the width if
    unknown."""
    ties: str = "strict"
    threshold: float | None = None
    """In the place of k: what exceeds it in magnitude stays; of k only the launch shape follows."""
    gated: bool = False
    """The threshold is for |silu(gate)|, before it meets up's output (CATS)."""
    search_range: tuple[int, int] | None = None
    """Magnitude bits between which the k-th was found in calibration: searched first, exact where it misses too."""

    def expected(self, width: int) -> int | None:
        """Of `width` entries, how many a launch may count on; None where a threshold's share is unknown."""
        return None if self.threshold is not None and self.k >= width else self.k


Selectors = dict[str, tuple[SiteSelector, ...]]
"""Site -> a selector for every layer."""


def dense_selectors(shape: ModelShape) -> Selectors:
    """Level 0: everything stays."""
    return {site: (SiteSelector(shape.sites[site].width),) * shape.layers for site in SITES}


def level_selectors(shape: ModelShape, level: float | dict[str, float], ties: str = "strict") -> Selectors:
    """Top-K at one level (a fraction), or at one a site, in every layer."""
    levels = level if isinstance(level, dict) else dict.fromkeys(SITES, level)
    kept = {site: kept_channels(levels[site], shape.sites[site].width) for site in SITES}
    if min(kept.values()) < 1:
        raise DecodeError(f"level {level} leaves no channel at a site")
    return {site: (SiteSelector(kept[site], ties),) * shape.layers for site in SITES}


def selectors_of(handle: SparsityHandle) -> Selectors:
    """The selectors that a sparse transformers model follows; a site that drops nothing keeps its whole width.

    A threshold is expected to keep what the plan does at its level; how many really stay varies by token and text.
    """
    selectors = {site: list(layers) for site, layers in dense_selectors(handle.plan.shape).items()}
    for site in handle.sites:
        selector, width = site.selector, site.selector.width
        threshold = getattr(selector, "threshold", None)
        if threshold is not None:
            planned = handle.plan.levels.kept[site.site][site.layer]
            site_selector = SiteSelector(planned, threshold=float(threshold), gated=site.gated)
        else:
            site_selector = SiteSelector(int(getattr(selector, "k", width)), str(getattr(selector, "ties", "strict")))
        selectors[site.site][site.layer] = site_selector
    return {site: tuple(layers) for site, layers in selectors.items()}


def cut(selectors: Selectors, layers: int) -> Selectors:
    """The selectors of the first layers."""
    return {site: by_layer[:layers] for site, by_layer in selectors.items()}
