"""R-Sparse (arXiv 2504.19449): large entries meet whole weight columns, the small ones a truncated SVD of the weights.

`y = W x_kept + W_r (x - x_kept)` for every projection, x_kept by a calibrated threshold per site (the paper) or Top-K.
The pairs (sparsity.low_rank) spend `method.low_rank_ratio` of a projection's bytes. They are run-time overhead, on top
of the levels, as that of every method. A site of level 0 drops nothing and has no pair.

The paper divides one budget: of the 1 - s it reads, 95 % are columns and 5 % low-rank where all projections are alike.
So its 50 % is `sparsity=0.525 method.low_rank_ratio=0.025` here. It then searches the division of each projection, by
evolution on perplexity. Here `method.low_rank_ratio_grid` tries a few ratios at each site of each layer. It keeps the
one whose consumers' outputs err least on the calibration tokens of the dense model. All ratios cost a site the bytes
that `method.low_rank_ratio` costs it: what a larger pair reads, a higher level saves. So the weight sparsity moves with
the ratios chosen, and the bytes read with overhead do not. `method.low_rank_ratio=0` asks for `sparsity` with overhead
included, as the paper does.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeVar

from larosa.calibration.calibrator import Calibrator
from larosa.config.run import MethodConfig, ScheduleConfig, TokenPolicyConfig
from larosa.methods.base import Method
from larosa.models.architecture import SITES
from larosa.models.sites import ModelShape, Site
from larosa.sparsity.handle import Plan
from larosa.sparsity.low_rank import LowRank, rank_of
from larosa.sparsity.schedule import Levels, ScheduleError
from larosa.sparsity.top_k import kept_channels

Entry = TypeVar("Entry")


class RSparse(Method):
    """Top-K or thresholds, and a low-rank pair per projection for what they drop."""

    searched_schedules = False

    def levels(
        self, method: MethodConfig, shape: ModelShape, schedule: ScheduleConfig, sparsity: float, model_name: str
    ) -> Levels:
        """The schedule's. Raises ScheduleError also for a ratio of the grid that is out of reach."""
        levels = super().levels(method, shape, schedule, sparsity, model_name)
        candidates(method, shape, levels)
        return levels

    def plan(
        self,
        method: MethodConfig,
        shape: ModelShape,
        levels: Levels,
        token_policy: TokenPolicyConfig,
        calibrator: Calibrator,
    ) -> Plan:
        """The levels with low-rank pairs of one ratio, or of the best ratio at each site."""
        tried = candidates(method, shape, levels)
        svd = calibrator.low_rank(max(tried))
        plans = [
            calibrator.with_thresholds(
                Plan(method, shape, paid, token_policy, rotation=None, low_rank=_pairs(svd, paid, ratio))
            )
            for ratio, paid in tried.items()
        ]
        if len(plans) == 1:
            return plans[0]
        errors = calibrator.site_errors(plans)
        best = {
            site: [min(range(len(plans)), key=lambda i: errors[i][site][layer]) for layer in range(shape.layers)]
            for site in SITES
        }
        return _merged(plans, best, list(tried))


def candidates(method: MethodConfig, shape: ModelShape, levels: Levels) -> dict[float, Levels]:
    """Ratio -> the levels at which its pairs cost every site the bytes of `method.low_rank_ratio`.

    Raises ScheduleError where a ratio would push a site below level 0 or leave it no channel.
    """
    ratios = method.low_rank_ratio_grid or (method.low_rank_ratio,)
    return {ratio: _paid(method, shape, levels, ratio) for ratio in ratios}


def _pair_weights(site: Site, ratio: float) -> int:
    return sum(rank_of(ratio, out, site.width) * (out + site.width) for out in site.outputs)


def _paid(method: MethodConfig, shape: ModelShape, levels: Levels, ratio: float) -> Levels:
    """The levels with the bytes of `ratio` beyond those of `method.low_rank_ratio` saved at the same site."""
    raised: dict[str, tuple[float, ...]] = {}
    for site, geometry in shape.sites.items():
        more = (_pair_weights(geometry, ratio) - _pair_weights(geometry, method.low_rank_ratio)) / geometry.weights
        raised[site] = tuple(level + more if level > 0 else 0.0 for level in levels.level[site])
        for layer, level in enumerate(raised[site]):
            if not 0 <= level <= 1 or kept_channels(level, geometry.width) < 1:
                raise ScheduleError(
                    f"a low-rank ratio of {ratio:g} would need level {level:.3f} at site {site}, layer {layer}, to "
                    f"cost what method.low_rank_ratio={method.low_rank_ratio:g} does: leave it out of "
                    "method.low_rank_ratio_grid, or choose another sparsity or schedule"
                )
    kept = {s: tuple(kept_channels(level, shape.sites[s].width) for level in raised[s]) for s in SITES}
    return Levels(levels.target, raised, kept, levels.source, levels.weights_per_channel)


def _pairs(svd: LowRank, levels: Levels, ratio: float) -> LowRank:
    return {
        site: tuple(
            tuple(pair.first(rank_of(ratio, len(pair.left), pair.right.shape[1])) for pair in pairs)
            if ratio > 0 and level > 0
            else ()
            for pairs, level in zip(svd[site], levels.level[site], strict=True)
        )
        for site in SITES
    }


def _merged(plans: list[Plan], best: dict[str, list[int]], ratios: list[float]) -> Plan:
    """Site by site the plan of index `best[site][layer]`."""

    def best_of(rows: list[dict[str, tuple[Entry, ...]]]) -> dict[str, tuple[Entry, ...]]:
        return {s: tuple(rows[i][s][layer] for layer, i in enumerate(best[s])) for s in SITES}

    first = plans[0]
    count = Counter(ratios[i] for chosen in best.values() for i in chosen)
    words = ", ".join(f"{ratio:g} at {count[ratio]}" for ratio in ratios)
    levels = Levels(
        first.levels.target,
        best_of([plan.levels.level for plan in plans]),
        best_of([plan.levels.kept for plan in plans]),
        f"{first.levels.source}; low-rank ratios searched at equal bytes read: {words} sites",
        first.levels.weights_per_channel,
    )
    thresholds = [plan.thresholds for plan in plans if plan.thresholds is not None]
    low_rank = [plan.low_rank for plan in plans if plan.low_rank is not None]
    return Plan(
        first.method, first.shape, levels, first.token_policy, rotation=None,
        thresholds=best_of(thresholds) if thresholds else None, calibrated_in=first.calibrated_in,
        low_rank=best_of(low_rank),
    )  # fmt: skip
