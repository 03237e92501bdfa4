"""How much a layer's output errs at each level of one of its sites.

The error of a layer is the mean over tokens of `||layer(x) - dense layer(x)||^2 / ||dense layer(x)||^2`, a token at a
time because in sums over tokens the few with massive activations would drown the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.architecture import SITES, ModelView
from larosa.evaluation.finite import finite
from larosa.sparsity.allocation import Floats
from larosa.sparsity.dials import Dials, LimitAt
from larosa.sparsity.handle import SparsityHandle


@torch.no_grad()
def output_curves(
    model: PreTrainedModel,
    handle: SparsityHandle,
    ids: Tensor,
    grid: Sequence[float],
    limits: LimitAt | None,
    around: str,
) -> Floats:
    """[layers, sites, levels]: the layer's error with one site at each level of `grid`; ids [N, T].

    around=dense: x is the dense model's stream in the plan's coordinates, and the other sites of the layer drop
    nothing. around=sparse: x is the stream of the model at the plan's levels, and the other sites of the layer
    stand there too; what they cost is in every point of a curve, so only differences along it mean something.
    """
    view = ModelView(model)
    sums = np.zeros((len(view.layers), len(SITES), len(grid)))
    dials = Dials(handle, limits)
    with dials.others(around):
        hooks = []
        for layer in view.layers:
            measure = _measure(dials, layer.index, sums[layer.index], grid)
            hooks.append(layer.module.register_forward_hook(measure, with_kwargs=True))
        try:
            for row in tqdm(torch.split(ids, 1), desc="error curves", unit="sequence", leave=False):
                view.decoder(input_ids=row.to(view.embedding.weight.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
    return sums / len(ids)


def layer_error(output: Tensor, dense: Tensor) -> float:
    """The mean over tokens of the squared error relative to the dense output. Both [N, T, D].

    Raises EvaluationError where it is not finite.
    """
    size = dense.float().pow(2).sum(-1)
    return finite(float(((output - dense).float().pow(2).sum(-1) / size).mean()), "the error of a layer's output")


def _measure(dials: Dials, layer: int, sums: Floats, grid: Sequence[float]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Tensor) -> None:
        with dials.dense(layer):
            dense = module.forward(*args, **kwargs)
        for i, site in enumerate(SITES):
            for j, level in enumerate(grid):
                with dials.turned(layer, {site: level}):
                    sums[i, j] += layer_error(module.forward(*args, **kwargs), dense)

    return hook
