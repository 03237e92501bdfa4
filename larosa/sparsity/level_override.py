"""Level overrides: sites of a sparse model held at other levels for a while, without a new plan.

A Top-K site keeps the plan's ties and importance; a threshold site keeps the importance and takes the threshold
calibrated for the level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from larosa.models.architecture import SITES
from larosa.sparsity.handle import PlanError, SparsityHandle
from larosa.sparsity.site import Selector, SparseSite
from larosa.sparsity.threshold import ThresholdSparsification
from larosa.sparsity.top_k import TopKSparsification, kept_channels

ThresholdAt = Callable[[int, str, float], float]
"""(layer, site, level) -> the magnitude up to which entries are dropped."""


class LevelOverrides:
    """Level overrides of a handle's model. `thresholds` is needed where the plan has thresholds."""

    def __init__(self, handle: SparsityHandle, thresholds: ThresholdAt | None) -> None:
        self._handle, self._thresholds = handle, thresholds
        self._sites = {(site.layer, site.site): site for site in handle.sites}
        if any(site.gated for site in handle.sites):
            raise PlanError("the sites of a gated method (cats) have no levels of their own")
        if handle.plan.dropped_mean is not None:
            raise PlanError("biases are calibrated for the plan's levels: set method.bias_compensation=none")

    def selector(self, site: SparseSite, level: float) -> Selector:
        """The selector that drops a fraction `level` of the entries at a site."""
        if isinstance(site.selector, TopKSparsification):
            width = site.selector.width
            kept = kept_channels(level, width, self._handle.plan.method.rounding)
            return TopKSparsification(width, 1 - kept / width, site.selector.ties, site.selector.importance)
        if self._thresholds is None:
            raise PlanError("a threshold at another level needs the thresholds of all levels")
        threshold = self._thresholds(site.layer, site.site, level)
        importance = getattr(site.selector, "importance", None)
        return ThresholdSparsification(site.selector.width, threshold, importance)

    @contextmanager
    def at_levels(self, layer: int, levels: Mapping[str, float]) -> Iterator[None]:
        """Within: these sites of a layer drop at these levels; other sites are unchanged."""
        with ExitStack() as stack:
            for name, level in levels.items():
                site = self._sites[layer, name]
                stack.callback(setattr, site, "selector", site.selector)
                stack.enter_context(site.dropping(True))
                site.selector = self.selector(site, level)
            yield

    @contextmanager
    def all_at_levels(self, levels: Mapping[str, Sequence[float]]) -> Iterator[None]:
        """Within: every site drops at its level; site -> one level per layer."""
        with ExitStack() as stack:
            for layer, _ in enumerate(levels["h1"]):
                stack.enter_context(self.at_levels(layer, {site: levels[site][layer] for site in SITES}))
            yield

    @contextmanager
    def dense(self, layer: int) -> Iterator[None]:
        """Within: no site of a layer drops anything."""
        with ExitStack() as stack:
            for (index, _), site in self._sites.items():
                if index == layer:
                    stack.enter_context(site.dropping(False))
            yield

    def others(self, other_sites: str) -> AbstractContextManager[None]:
        """Within, at every token: sites without override drop nothing (`dense`) or keep the plan's levels
        (`sparse`)."""
        return self._handle.level_zero() if other_sites == "dense" else self._handle.policy.everywhere()
