"""TEAL's greedy levels for every layer of a model, on the hidden states of the dense model.

The error is that of search.curves. TEAL's code excludes the first three quarters of a sequence and so its massive
activations; an error relative to each token's output need not exclude them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.models.architecture import SITES, ModelView
from larosa.search.allocation import Floats
from larosa.search.curves import layer_error
from larosa.search.greedy import greedy_levels
from larosa.sparsity.handle import SparsityHandle
from larosa.sparsity.level_override import LevelOverrides, ThresholdAt


@torch.no_grad()
def greedy_allocation(
    model: PreTrainedModel,
    handle: SparsityHandle,
    ids: Tensor,
    thresholds: ThresholdAt | None,
    target: float,
    step: float,
    highest: float,
) -> Floats:
    """Levels [layers, sites]; every layer reaches `target`. All of ids [N, T] passes in one batch.

    `step`: weights dropped per step, as a fraction of a D x D matrix; no level exceeds `highest`.
    """
    view, shape = ModelView(model), handle.plan.shape
    weights = {site: shape.sites[site].weights for site in SITES}
    allocation = np.zeros((shape.layers, len(SITES)))

    with tqdm(total=shape.layers, desc="greedy levels", leave=False) as bar:
        overrides = LevelOverrides(handle, thresholds)

        def hook(layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dense: Tensor) -> None:
            def error(levels: dict[str, float]) -> float:
                with overrides.at_levels(layer, levels):
                    return layer_error(module.forward(*args, **kwargs), dense)

            levels = greedy_levels(error, weights, target, step * shape.hidden_size**2, highest)
            allocation[layer] = [levels[site] for site in SITES]
            bar.update()

        hooks = [
            layer.module.register_forward_hook(
                lambda *given, at=layer.index: hook(at, *given),
                with_kwargs=True,
            )
            for layer in view.layers
        ]
        try:
            with handle.level_zero():
                view.decoder(input_ids=ids.to(view.embedding.weight.device), use_cache=False)
        finally:
            for one in hooks:
                one.remove()
    return allocation
