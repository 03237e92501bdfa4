"""The divergence of the model's next-token distribution from the dense one at each level of one site.

`KL(dense || sparse) = sum_v p_v (log p_v - log q_v)` in nats, mean over tokens: the cost of a level in the loss,
not in a layer's output. The layers before the site do not change, so each measurement starts at the site's own layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.models.architecture import SITES, ModelView
from larosa.models.finite import finite
from larosa.search.allocation import Floats
from larosa.sparsity.handle import SparsityHandle
from larosa.sparsity.level_override import LevelOverrides, ThresholdAt

_TOKENS = 256


@torch.no_grad()
def divergence_curves(
    model: PreTrainedModel,
    handle: SparsityHandle,
    ids: Tensor,
    grid: Sequence[float],
    thresholds: ThresholdAt | None,
    other_sites: str,
) -> Floats:
    """[layers, sites, levels] of nats per token, with one site at each level of `grid`; ids [N, T].

    other_sites=dense: all other sites drop nothing. other_sites=sparse: they keep the plan's levels; their cost
    is in every point of a curve, so only differences along a curve are meaningful. The dense distribution is that of
    the transformed model with nothing dropped. Keeps one sequence's log-probabilities, [T, vocabulary].
    """
    view = ModelView(model)
    sums = np.zeros((len(view.layers), len(SITES), len(grid)))
    points = [(layer.index, i, j) for layer in view.layers for i in range(len(SITES)) for j in range(len(grid))]
    overrides = LevelOverrides(handle, thresholds)
    with tqdm(total=len(ids) * len(points), desc="KL curves", leave=False) as bar:
        for row in torch.split(ids, 1):
            with handle.level_zero():
                dense = torch.cat(list(_log_probabilities(view, _Stream(view, row).after(0))))
            with overrides.others(other_sites):
                stream = _Stream(view, row)
                for layer, i, j in points:
                    with overrides.at_levels(layer, {SITES[i]: grid[j]}):
                        sums[layer, i, j] += divergence(view, dense, stream.after(layer))
                    bar.update()
    return sums / len(ids)


class _Stream:
    """The residual stream of one sequence as it enters each layer, and what else the layers are called with."""

    def __init__(self, view: ModelView, ids: Tensor) -> None:
        """ids: [1, T]."""
        self._view = view
        self._entering: list[Tensor] = []
        self._settings: list[dict[str, Any]] = []

        def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            settings = dict(kwargs)
            self._entering.append(args[0] if args else settings.pop("hidden_states"))
            self._settings.append(settings)

        hooks = [  # prepended: the stream before a residual adapter, which runs again with its layer
            layer.module.register_forward_pre_hook(record, with_kwargs=True, prepend=True) for layer in view.layers
        ]
        try:
            view.decoder(input_ids=ids.to(view.embedding.weight.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()

    def after(self, layer: int) -> Tensor:
        """[T, D]: the final norm's output, computed again from the stream that enters `layer`."""
        x = self._entering[layer]
        for view, settings in zip(self._view.layers[layer:], self._settings[layer:], strict=True):
            x = view.module(x, **settings)
        hidden: Tensor = self._view.final_norm(x)[0]
        return hidden


def _log_probabilities(view: ModelView, hidden: Tensor) -> Any:
    """Yield [tokens, vocabulary], at least float32, for pieces of hidden [T, D]."""
    for piece in torch.split(hidden, _TOKENS):
        logits = view.head(piece)
        yield torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


def divergence(view: ModelView, dense: Tensor, hidden: Tensor) -> float:
    """Nats per token between log-probabilities [T, vocabulary] of the dense model and the head's on hidden [T, D].

    Raises EvaluationError where they are not finite.
    """
    total = 0.0
    for expected, actual in zip(torch.split(dense, _TOKENS), _log_probabilities(view, hidden), strict=True):
        total += float((expected.exp() * (expected - actual)).sum(-1).double().sum())
    return finite(total / len(dense), "the KL divergence from the dense model")
