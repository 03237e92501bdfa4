"""TEAL's block-wise greedy levels (arXiv 2408.14690, Algorithm 1), for one layer.

Start with every site at 0 and raise, again and again, the site whose raise leaves the layer's output with the
smallest error, all sites at their levels so far. Each raise drops equally many weights, so a site with fewer weights
takes a bigger step: as in TEAL's code, `step` of one D x D matrix. The last raise is trimmed to the target, which TEAL
oversteps. TEAL raises the seven projections one by one; here q, k and v share a mask, as do gate and up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from larosa.search.allocation import AllocationError

LayerError = Callable[[dict[str, float]], float]
"""The error of a layer's output with its sites at these levels."""


def greedy_levels(
    error: LayerError, weights: Mapping[str, int], target: float, raise_weights: float, highest: float
) -> dict[str, float]:
    """Site -> level, none above `highest`, with `target` as their mean weighted by `weights` (behind each site).

    One raise drops `raise_weights` weights. Raises AllocationError where the target lies above `highest`.
    """
    if target > highest:
        raise AllocationError(f"levels may rise to {highest}; a target of {target} needs more")
    levels, total = dict.fromkeys(weights, 0.0), sum(weights.values())
    left = target * total
    while left > 1e-9 * total:
        raised = {
            site: levels[site] + min(raise_weights, left, (highest - levels[site]) * weight) / weight
            for site, weight in weights.items()
            if highest - levels[site] > 1e-9
        }
        best = min(raised, key=lambda site: error({**levels, site: raised[site]}))
        left -= (raised[best] - levels[best]) * weights[best]
        levels[best] = raised[best]
    return levels
