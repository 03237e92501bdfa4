"""Bias compensation: the mean effect of what a site drops, as a constant vector per projection.

A consumer W of a site computes `W S(x) + W E[x - S(x)]` instead of `W S(x)`, so its output is right in the mean over
the calibration tokens: of the mean squared output error, the square of the mean error is removed. Only tokens that are
made sparse get it, and only while the site drops entries, so level 0 stays exact. SPON (arXiv 2512.12744) trains such
vectors; here they are in closed form.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class _Held(threading.local):
    """Whether a thread's forward pass dropped entries at the site, and of which tokens (None: of all)."""

    active: bool = False
    mask: Tensor | None = None


class BiasCompensation:
    """Adds a bias vector per consumer to its outputs, with removable hooks.

    mean [width]: E[x - S(x)], in the coordinates in which the consumers read x; `biases` are in the dtypes and on the
    devices of the consumers' weights.
    """

    def __init__(self, consumers: Sequence[nn.Linear], mean: Tensor) -> None:
        self._consumers = consumers
        self.biases = [
            (linear.weight.double() @ mean.to(linear.weight.device).double()).to(linear.weight.dtype)
            for linear in consumers
        ]
        self._held = _Held()

    def attach(self) -> list[RemovableHandle]:
        """Hook the consumers."""
        return [
            linear.register_forward_hook(self._adder(bias))
            for linear, bias in zip(self._consumers, self.biases, strict=True)
        ]

    def hold(self, active: bool, mask: Tensor | None = None) -> None:
        """Whether the consumers that run next add their vectors; mask [B, T]: for which tokens, None for all."""
        self._held.active, self._held.mask = active, mask

    def output(self) -> Tensor:
        """What it adds to the concatenated outputs of the consumers, [out_features]."""
        return torch.cat(self.biases)

    def _adder(self, bias: Tensor) -> Any:
        def hook(_linear: nn.Module, _args: Any, output: Tensor) -> Tensor:
            if not self._held.active:
                return output
            mask = self._held.mask
            return output + (bias if mask is None else torch.where(mask.to(output.device)[..., None], bias, 0))

        return hook
