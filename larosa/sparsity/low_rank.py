"""Low-rank pairs: dropped entries still reach each projection of a site, through a truncated SVD of its weights.

R-Sparse (arXiv 2504.19449) computes `y = W x_kept + W_r (x - x_kept)`, where W_r is the best approximation of W
[out, in] of rank r, stored as `left [out, r]` times `right [r, in]`. A pair is read in full for every token.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.models.architecture import SITES, ModelView


class LowRankPair(NamedTuple):
    """`left @ right`, with singular values falling from the first column of `left` on."""

    left: Tensor
    """[out, r]"""
    right: Tensor
    """[r, in]"""

    @property
    def rank(self) -> int:
        """r."""
        return self.left.shape[1]

    def first(self, rank: int) -> LowRankPair:
        """The pair of a smaller rank, which is the best one of that rank."""
        return LowRankPair(self.left[:, :rank], self.right[:rank])


LowRank = dict[str, tuple[tuple[LowRankPair, ...], ...]]
"""Site -> layer -> a pair per consumer of the site, in their order; () where there is none."""


def rank_of(ratio: float, outputs: int, inputs: int) -> int:
    """The rank whose pair has at most `ratio` (a fraction) of the weights of [outputs, inputs]; at least 1 above 0."""
    return max(1, math.floor(ratio * outputs * inputs / (outputs + inputs))) if ratio > 0 else 0


def truncated_svd(weight: Tensor, rank: int) -> LowRankPair:
    """The first `rank` singular directions of weight [out, in], float64 on its device.

    Computed from the Gram matrix of the shorter side. The vector of a tiny singular value may be inexact, but the pair
    of full rank equals W up to rounding.
    """
    exact = weight.double()
    wide = exact.shape[0] <= exact.shape[1]
    vectors = torch.linalg.eigh(exact @ exact.T if wide else exact.T @ exact).eigenvectors.flip(-1)[:, :rank]
    return LowRankPair(vectors, vectors.T @ exact) if wide else LowRankPair(exact @ vectors, vectors.T)


@torch.no_grad()
def truncated_svds(model: PreTrainedModel, ratio: float) -> LowRank:
    """A pair with `ratio` of the weights per projection, on the CPU, in the projection's dtype."""
    layers = tqdm(ModelView(model).layers, desc="truncated SVDs", unit="layer", leave=False)
    rows = [
        {site: tuple(_stored(linear, ratio) for linear in layer.consumers(site)) for site in SITES} for layer in layers
    ]
    return {site: tuple(row[site] for row in rows) for site in SITES}


def flat(low_rank: LowRank) -> dict[str, Tensor]:
    """Name -> tensor, for a file; names sort by site, layer and consumer."""
    return {
        f"{site}.{layer:04}.{consumer}.{side}": half
        for site, layers in low_rank.items()
        for layer, pairs in enumerate(layers)
        for consumer, pair in enumerate(pairs)
        for side, half in pair._asdict().items()
    }


def unflat(tensors: dict[str, Tensor]) -> LowRank:
    """What :func:`flat` took apart."""
    by_site: dict[str, dict[str, list[LowRankPair]]] = {site: {} for site in SITES}
    for place in sorted(name.removesuffix(".left") for name in tensors if name.endswith(".left")):
        site, layer, _ = place.split(".")
        pair = LowRankPair(tensors[f"{place}.left"], tensors[f"{place}.right"])
        by_site[site].setdefault(layer, []).append(pair)
    return {site: tuple(tuple(pairs) for pairs in layers.values()) for site, layers in by_site.items()}


class _Held(threading.local):
    """The remainder of a thread's forward pass, and the number of consumers that have not read it yet."""

    rest: Tensor | None = None
    waiting: int = 0


class LowRankRemainder:
    """Adds the dropped entries of a site to the outputs of its consumers, through their pairs, with removable hooks.

    `pairs` are moved to the consumers' devices and dtypes. The remainder of a forward pass is freed when the last
    consumer has read it.
    """

    def __init__(self, consumers: Sequence[nn.Linear], pairs: Sequence[LowRankPair]) -> None:
        self._consumers = consumers
        self._pairs = [
            LowRankPair(*(half.to(linear.weight).contiguous() for half in pair))  # as files hold them
            for linear, pair in zip(consumers, pairs, strict=True)
        ]
        self._held = _Held()

    def attach(self) -> list[RemovableHandle]:
        """Hook the consumers."""
        return [
            linear.register_forward_hook(self._adder(pair))
            for linear, pair in zip(self._consumers, self._pairs, strict=True)
        ]

    def hold(self, rest: Tensor | None) -> None:
        """Keep rest [..., width] for the consumers that run next; None: they add nothing."""
        self._held.rest, self._held.waiting = rest, len(self._consumers)

    def output(self, rest: Tensor) -> Tensor:
        """What rest [..., width] adds to the concatenated outputs of the consumers, [..., out_features]."""
        return torch.cat([_product(pair, rest) for pair in self._pairs], dim=-1)

    def _adder(self, pair: LowRankPair) -> Any:
        def hook(_linear: nn.Module, _args: Any, output: Tensor) -> Tensor:
            rest = self._held.rest
            if rest is None:
                return output
            self._held.waiting -= 1
            if self._held.waiting == 0:
                self._held.rest = None
            return output + _product(pair, rest)

        return hook


def _stored(linear: nn.Linear, ratio: float) -> LowRankPair:
    pair = truncated_svd(linear.weight, rank_of(ratio, *linear.weight.shape))
    return LowRankPair(*(half.to(linear.weight.dtype).cpu().contiguous() for half in pair))


def _product(pair: LowRankPair, rest: Tensor) -> Tensor:
    return (rest @ pair.right.T) @ pair.left.T
