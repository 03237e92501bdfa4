"""TEAL's greedy levels for every layer of a model, on the dense model's hidden states.

The error is that of evaluation.curves. (TEAL's code leaves out the first three quarters of a sequence, and with them
the massive activations that an error relative to each token's output need not avoid.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.architecture import SITES, ModelView
from larosa.evaluation.curves import layer_error
from larosa.sparsity.allocation import Floats
from larosa.sparsity.dials import Dials, LimitAt
from larosa.sparsity.greedy import greedy_levels
from larosa.sparsity.handle import SparsityHandle


@torch.no_grad()
def greedy_allocation(
    model: PreTrainedModel,
    handle: SparsityHandle,
    ids: Tensor,
    limits: LimitAt | None,
    target: float,
    step: float,
    highest: float,
) -> Floats:
    """Levels [layers, sites]; every layer meets `target`. All of ids [N, T] passes in one batch.

    `step`: weights dropped by one raise, as a fraction of D x D; no level rises above `highest`.
    """
    view, shape = ModelView(model), handle.plan.shape
    weights = {site: shape.sites[site].weights for site in SITES}
    found = np.zeros((shape.layers, len(SITES)))

    with tqdm(total=shape.layers, desc="greedy levels", leave=False) as bar:
        dials = Dials(handle, limits)

        def hook(layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dense: Tensor) -> None:
            def error(levels: dict[str, float]) -> float:
                with dials.turned(layer, levels):
                    return layer_error(module.forward(*args, **kwargs), dense)

            levels = greedy_levels(error, weights, target, step * shape.hidden_size**2, highest)
            found[layer] = [levels[site] for site in SITES]
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
    return found
