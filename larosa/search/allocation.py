"""Levels per layer and site by equal marginal error.

Given the error of each site of each layer as a function of its level, the levels that reach a target weight sparsity
with the smallest sum of errors have equal marginal error per byte. Each curve is replaced by its lower convex hull.
Segments are taken in order of slope; the last one is cut at the target.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from larosa.errors import LarosaError

Floats = NDArray[np.float64]


class AllocationError(LarosaError):
    """The curves do not reach the target."""


def allocate(curves: Floats, grid: Floats, weights: Floats, target: float) -> Floats:
    """Levels [layers, sites] whose weight sparsity is `target`.

    curves [layers, sites, points]: error at the levels `grid` [points], which starts at 0; weights [sites]: weights
    of each site. Raises AllocationError where the target is above the grid.
    """
    if grid[0] != 0.0 or target > grid[-1]:
        raise AllocationError(f"the levels tried run from {grid[0]} to {grid[-1]}; a target of {target} needs more")
    segments = []
    for place in np.ndindex(*curves.shape[:2]):
        hull = _lower_hull(grid, curves[place])
        for a, b in pairwise(hull):
            slope = (curves[place][b] - curves[place][a]) / ((grid[b] - grid[a]) * weights[place[1]])
            segments.append((slope, grid[a], place, grid[b] - grid[a]))
    levels = np.zeros(curves.shape[:2])
    budget = target * weights.sum() * curves.shape[0]
    for _slope, _start, place, length in sorted(segments, key=lambda segment: segment[:2]):
        taken = min(length, budget / weights[place[1]])
        levels[place] += taken
        budget -= taken * weights[place[1]]
        if budget <= 0:
            break
    return levels


def _lower_hull(x: Floats, y: Floats) -> list[int]:
    """Indices of the points on the lower convex hull, by rising x."""
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(i)
    return hull
