"""R-Sparse (arXiv 2504.19449): large entries meet whole weight columns, the small ones a truncated SVD of the weights.

`y = W x_kept + W_r (x - x_kept)` for every projection, x_kept by a calibrated limit a site (the paper) or Top-K.
The pairs (sparsity.low_rank) spend `method.low_rank_ratio` of a projection's bytes, on top of the levels asked for as
every method's extras do; a site of level 0 drops nothing and has no pair.

The paper divides one budget: of the 1 - s it reads, 95 % are columns and 5 % low-rank where all projections are alike.
So its 50 % is `sparsity=0.525 method.low_rank_ratio=0.025` here. It then searches the division of each projection, by
evolution on perplexity. Here `method.low_rank_ratio_grid` tries a few shares at each site of each layer and keeps the one
whose readers' outputs err least on the calibration tokens of the dense model. All cost a site the net bytes that
`method.low_rank_ratio` costs it: what a larger pair reads, a higher level saves. The byte-weighted level then moves with
the shares chosen, net bytes do not; `method.low_rank_ratio=0` asks for `sparsity` net, as the paper does.
"""

from __future__ import annotations

from collections import Counter
from typing import TypeVar

from larosa.calibration.calibrator import Calibrator
from larosa.config.run import MethodConfig, TokenPolicyConfig
from larosa.models.architecture import SITES
from larosa.models.sites import ModelShape, Site
from larosa.sparsity.handle import Plan
from larosa.sparsity.low_rank import LowRank, rank_of
from larosa.sparsity.schedule import Levels, ScheduleError
from larosa.sparsity.top_k import kept_channels

Entry = TypeVar("Entry")


def candidates(method: MethodConfig, shape: ModelShape, levels: Levels) -> dict[float, Levels]:
    """Share -> the levels at which its pairs cost every site the net bytes of `method.low_rank_ratio`.

    Raises ScheduleError where a share would push a site below level 0 or leave it no channel.
    """
    return {
        share: _paid(method, shape, levels, share) for share in method.low_rank_ratio_grid or (method.low_rank_ratio,)
    }


def plan(
    method: MethodConfig, shape: ModelShape, levels: Levels, tokens: TokenPolicyConfig, calibrator: Calibrator
) -> Plan:
    """The levels with low-rank pairs of one share, or of the best share at each site."""
    found = candidates(method, shape, levels)
    svd = calibrator.low_rank(max(found))
    plans = [
        Plan(method, shape, own, tokens, rotation=None, low_rank=_pairs(svd, own, share))
        for share, own in found.items()
    ]
    plans = [calibrator.with_thresholds(each) for each in plans]
    if len(plans) == 1:
        return plans[0]
    errors = calibrator.site_errors(plans)
    best = {
        site: [min(range(len(plans)), key=lambda i: errors[i][site][layer]) for layer in range(shape.layers)]
        for site in SITES
    }
    return _merged(plans, best, list(found))


def _pair_weights(site: Site, share: float) -> int:
    return sum(rank_of(share, out, site.width) * (out + site.width) for out in site.outputs)


def _paid(method: MethodConfig, shape: ModelShape, levels: Levels, share: float) -> Levels:
    """The levels with the bytes of `share` beyond those of `method.low_rank_ratio` saved at the same site."""
    raised: dict[str, tuple[float, ...]] = {}
    for site, geometry in shape.sites.items():
        more = (_pair_weights(geometry, share) - _pair_weights(geometry, method.low_rank_ratio)) / geometry.weights
        raised[site] = tuple(level + more if level > 0 else 0.0 for level in levels.level[site])
        for layer, level in enumerate(raised[site]):
            if not 0 <= level <= 1 or kept_channels(level, geometry.width) < 1:
                raise ScheduleError(
                    f"a low-rank share of {share:g} would need level {level:.3f} at site {site}, layer {layer}, to "
                    f"cost what method.low_rank_ratio={method.low_rank_ratio:g} does: leave it out of method.low_rank_ratio_grid, or "
                    "choose another sparsity or schedule"
                )
    kept = {s: tuple(kept_channels(level, shape.sites[s].width) for level in raised[s]) for s in SITES}
    return Levels(levels.target, raised, kept, levels.source, levels.weights_per_channel)


def _pairs(svd: LowRank, levels: Levels, share: float) -> LowRank:
    return {
        site: tuple(
            tuple(pair.first(rank_of(share, len(pair.left), pair.right.shape[1])) for pair in pairs)
            if share > 0 and level > 0
            else ()
            for pairs, level in zip(svd[site], levels.level[site], strict=True)
        )
        for site in SITES
    }


def _merged(plans: list[Plan], best: dict[str, list[int]], shares: list[float]) -> Plan:
    """Site by site the plan of index `best[site][layer]`."""

    def pick(rows: list[dict[str, tuple[Entry, ...]]]) -> dict[str, tuple[Entry, ...]]:
        return {s: tuple(rows[i][s][layer] for layer, i in enumerate(best[s])) for s in SITES}

    first = plans[0]
    count = Counter(shares[i] for chosen in best.values() for i in chosen)
    words = ", ".join(f"{share:g} at {count[share]}" for share in shares)
    levels = Levels(
        first.levels.target,
        pick([plan.levels.level for plan in plans]),
        pick([plan.levels.kept for plan in plans]),
        f"{first.levels.source}; low-rank shares searched at equal net bytes: {words} sites",
        first.levels.weights_per_channel,
    )
    thresholds = [plan.thresholds for plan in plans if plan.thresholds is not None]
    low_rank = [plan.low_rank for plan in plans if plan.low_rank is not None]
    return Plan(
        first.method, first.shape, levels, first.token_policy, rotation=None,
        thresholds=pick(thresholds) if thresholds else None, calibrated_in=first.calibrated_in, low_rank=pick(low_rank),
    )  # fmt: skip
