"""Which entries a decode step keeps at each site: k largest, or what exceeds a calibrated limit."""

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
class SiteRule:
    """One site of one layer."""

    k: int
    """Entries that stay; the width drops nothing. With a limit: as many as are expected to, the width if unknown."""
    ties: str = "strict"
    limit: float | None = None
    """In the place of k: what exceeds it in magnitude stays; of k only the launch shape follows."""
    gated: bool = False
    """The limit is for |silu(gate)|, before it meets up's output (CATS)."""
    bracket: tuple[int, int] | None = None
    """Magnitude bits between which the k-th was found in calibration: searched first, exact where it misses too."""

    def expected(self, width: int) -> int | None:
        """Of `width` entries, how many a launch may count on; None where a limit's share is unknown."""
        return None if self.limit is not None and self.k >= width else self.k


Rules = dict[str, tuple[SiteRule, ...]]
"""Site -> a rule for every layer."""


def dense_rules(shape: ModelShape) -> Rules:
    """Level 0: everything stays."""
    return {site: (SiteRule(shape.sites[site].width),) * shape.layers for site in SITES}


def level_rules(shape: ModelShape, level: float | dict[str, float], ties: str = "strict") -> Rules:
    """Top-K at one level (a fraction), or at one a site, in every layer."""
    levels = level if isinstance(level, dict) else dict.fromkeys(SITES, level)
    kept = {site: kept_channels(levels[site], shape.sites[site].width) for site in SITES}
    if min(kept.values()) < 1:
        raise DecodeError(f"level {level} leaves no channel at a site")
    return {site: (SiteRule(kept[site], ties),) * shape.layers for site in SITES}


def rules_of(handle: SparsityHandle) -> Rules:
    """The rules that a sparse transformers model follows; a site that drops nothing keeps its whole width.

    A limit is expected to keep what the plan does at its level; how many really stay varies by token and text.
    """
    rules = {site: list(layers) for site, layers in dense_rules(handle.plan.shape).items()}
    for site in handle.sites:
        rule, width = site.rule, site.rule.width
        limit = getattr(rule, "threshold", None)
        if limit is not None:
            planned = handle.plan.levels.kept[site.site][site.layer]
            own = SiteRule(planned, limit=float(limit), gated=site.gated)
        else:
            own = SiteRule(int(getattr(rule, "k", width)), str(getattr(rule, "ties", "strict")))
        rules[site.site][site.layer] = own
    return {site: tuple(layers) for site, layers in rules.items()}


def cut(rules: Rules, layers: int) -> Rules:
    """The rules of the first layers."""
    return {site: own[:layers] for site, own in rules.items()}
