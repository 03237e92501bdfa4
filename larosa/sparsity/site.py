"""A sparse site: where an activation is made sparse on its way to the projections that read it.

h1 and h3 are tapped behind their norm, h2 and h4 before their linear, with removable hooks; transformers'
forward code is unchanged. An observer may read the activations (see evaluation.sparsity, evaluation.error).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from larosa.models.architecture import LayerView
from larosa.rotation.online import OnlineTransform
from larosa.sparsity.compensation import BiasCompensation
from larosa.sparsity.low_rank import LowRankRemainder
from larosa.sparsity.token_policy import TokenPolicy


class Observer(Protocol):
    """Receives each activation that a site makes sparse; rows are the sparse tokens only."""

    def observe(self, site: SparseSite, x: Tensor, y: Tensor, z: Tensor, z_sparse: Tensor) -> None:
        """x: before, y: after, z and z_sparse: the same in the site's own basis; all [tokens, width]."""


class Selector(Protocol):
    """Which entries of a token's vector are kept: TopKSparsification or ThresholdSparsification."""

    width: int

    def __call__(self, x: Tensor) -> Tensor:
        """x: [..., width]; the same with the dropped entries zero."""

    def ranked(self, x: Tensor) -> Tensor:
        """The tensor whose magnitudes decide: x, or x times the importance of each channel."""

    def thresholds(self, x: Tensor) -> Tensor | None:
        """[..., 1], the ranked magnitude from which entries are kept; None where there is none."""


class SimulatedRotation(Protocol):
    """A rotation into a basis and its inverse: LayerwiseRotationMatrix, or a tuning step's."""

    def rotate(self, x: Tensor) -> Tensor:
        """x: [..., width], in the site's own basis."""

    def unrotate(self, x: Tensor) -> Tensor:
        """The inverse."""


class SparseSite(nn.Module):
    """A selector at one site of one layer. Optional: a simulated rotation (rotate, drop, rotate back), an online
    transform whose inverse is in the consumers' weights, low-rank pairs for the dropped entries, or their mean effect
    as a bias."""

    def __init__(
        self,
        layer: LayerView,
        site: str,
        selector: Selector,
        policy: TokenPolicy,
        rotation: SimulatedRotation | None = None,
        transform: OnlineTransform | None = None,
        low_rank: LowRankRemainder | None = None,
        compensation: BiasCompensation | None = None,
    ) -> None:
        super().__init__()
        self.layer, self.site = layer.index, site
        self.selector, self.policy = selector, policy
        self.rotation: SimulatedRotation | None = rotation
        self.transform, self.low_rank, self.compensation = transform, low_rank, compensation
        self.consumers = layer.consumers(site)
        self.gated = False
        self.enabled = True
        self.observer: Observer | None = None
        self._level_zero = False

    def attach(self, layer: LayerView, gated: bool = False) -> list[RemovableHandle]:
        """Hook the site into its layer. `gated`: h4's selector acts on the gate, before the product with up."""
        self.gated = gated
        if gated:
            hook = layer.gate().register_forward_hook(lambda _m, _args, output: self(output))
        elif self.site in ("h1", "h3"):
            hook = layer.norm(self.site).register_forward_hook(lambda _m, _args, output: self(output))
        else:
            hook = self.consumers[0].register_forward_pre_hook(self._before)
        added = (self.low_rank, self.compensation)
        return [hook, *(more for part in added if part is not None for more in part.attach())]

    def _before(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        return (self(args[0]),)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, width]; returns it, transformed if there is a transform, with dropped channels removed."""
        if self.low_rank is not None:
            self.low_rank.hold(None)
        if self.compensation is not None:
            self.compensation.hold(False)
        if self.transform is not None:
            x = self.transform(x)
        if not self.enabled:
            return x
        z = x if self.rotation is None else self.rotation.rotate(x)
        z_sparse: Tensor = z if self._level_zero else self.selector(z)
        y = z_sparse if self.rotation is None else self.rotation.unrotate(z_sparse).to(x.dtype)
        mask = self.policy.mask
        if self.observer is not None:
            keep = slice(None) if mask is None else mask.to(x.device).reshape(-1)
            self.observer.observe(self, *(t.reshape(-1, t.shape[-1])[keep] for t in (x, y, z, z_sparse)))
        sparse = y if mask is None else torch.where(mask.to(x.device)[..., None], y, x)
        if self.low_rank is not None and not self._level_zero:
            self.low_rank.hold(x - sparse)
        if self.compensation is not None:
            self.compensation.hold(not self._level_zero, mask)
        return sparse

    @contextmanager
    def dropping(self, drops: bool) -> Iterator[None]:
        """Within: the selector drops entries, or nothing is dropped; rotations and transforms are computed either
        way."""
        before, self._level_zero = self._level_zero, not drops
        try:
            yield
        finally:
            self._level_zero = before
