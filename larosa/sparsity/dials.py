"""The sites of a sparse model, each turned to any level for a while, without planning or applying anew.

A Top-K site keeps the plan's ties and scores; a threshold site takes the limit that was calibrated for the level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from larosa.architecture import SITES
from larosa.sparsity.handle import PlanError, SparsityHandle
from larosa.sparsity.site import Rule, SparseSite
from larosa.sparsity.threshold import ThresholdSparsification
from larosa.sparsity.top_k import TopKSparsification, kept_channels

LimitAt = Callable[[int, str, float], float]
"""(layer, site, level) -> the magnitude up to which entries are dropped there."""


class Dials:
    """One dial a site of a handle's model. `limits` is needed where the plan has thresholds."""

    def __init__(self, handle: SparsityHandle, limits: LimitAt | None) -> None:
        self._handle, self._limits = handle, limits
        self._sites = {(site.layer, site.site): site for site in handle.sites}
        if any(site.gated for site in handle.sites):
            raise PlanError("the sites of a gated method (cats) have no levels of their own")

    def rule(self, site: SparseSite, level: float) -> Rule:
        """What drops `level` of the entries at a site."""
        if isinstance(site.rule, TopKSparsification):
            width = site.rule.width
            kept = kept_channels(level, width, self._handle.plan.method.top_k.rounding)
            return TopKSparsification(width, 1 - kept / width, site.rule.ties, site.rule.score)
        if self._limits is None:
            raise PlanError("a threshold at another level needs the limits of all levels")
        return ThresholdSparsification(site.rule.width, self._limits(site.layer, site.site, level))

    @contextmanager
    def turned(self, layer: int, levels: Mapping[str, float]) -> Iterator[None]:
        """Within: these sites of a layer drop at these levels; all others go on as they are."""
        with ExitStack() as stack:
            for name, level in levels.items():
                site = self._sites[layer, name]
                stack.callback(setattr, site, "rule", site.rule)
                stack.enter_context(site.dropping(True))
                site.rule = self.rule(site, level)
            yield

    @contextmanager
    def all_turned(self, levels: Mapping[str, Sequence[float]]) -> Iterator[None]:
        """Within: every site drops at its level; site -> one a layer."""
        with ExitStack() as stack:
            for layer, _ in enumerate(levels["h1"]):
                stack.enter_context(self.turned(layer, {site: levels[site][layer] for site in SITES}))
            yield

    @contextmanager
    def dense(self, layer: int) -> Iterator[None]:
        """Within: no site of a layer drops anything."""
        with ExitStack() as stack:
            for (index, _), site in self._sites.items():
                if index == layer:
                    stack.enter_context(site.dropping(False))
            yield

    def others(self, around: str) -> AbstractContextManager[None]:
        """Within, at every token: sites that are not turned drop nothing (`dense`) or the plan's levels (`sparse`)."""
        return self._handle.level_zero() if around == "dense" else self._handle.policy.everywhere()
