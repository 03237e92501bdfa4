"""TEAL's block-wise greedy levels (arXiv 2408.14690, Algorithm 1), for one layer.

Start with every site at level 0. Repeatedly raise the site whose raise gives the smallest error of the layer's output,
with all other sites at their current levels. Each step drops the same number of weights (as in TEAL's code, a fraction
`step` of a D x D matrix), so a site with fewer weights takes a larger step. The last step is cut at the target, which
TEAL oversteps. TEAL raises the seven projections separately; here q, k and v share a mask, as do gate and up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from larosa.search.allocation import AllocationError

LayerError = Callable[[dict[str, float]], float]
"""Levels per site -> the error of the layer's output."""


def greedy_levels(
    error: LayerError, weights: Mapping[str, int], target: float, raise_weights: float, highest: float
) -> dict[str, float]:
    """Site -> level, none above `highest`, with `target` as their mean weighted by `weights` (of each site).

    One step drops `raise_weights` weights. Raises AllocationError where the target is above `highest`.
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
