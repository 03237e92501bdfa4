"""The error of a layer's output at each level of one of its sites.

The error is the mean over tokens of `||layer(x) - dense layer(x)||^2 / ||dense layer(x)||^2`. It is relative per token,
because the few tokens with massive activations would dominate a sum over tokens.
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


@torch.no_grad()
def output_curves(
    model: PreTrainedModel,
    handle: SparsityHandle,
    ids: Tensor,
    grid: Sequence[float],
    thresholds: ThresholdAt | None,
    other_sites: str,
) -> Floats:
    """[layers, sites, levels]: the layer's error with one site at each level of `grid`; ids [N, T].

    other_sites=dense: x is the dense model's stream in the plan's coordinates, and the other sites of the layer drop
    nothing. other_sites=sparse: x is the stream of the model at the plan's levels, and the other sites of the layer
    keep those levels. Their error is in every point of a curve, so only differences along a curve are meaningful.
    """
    view = ModelView(model)
    sums = np.zeros((len(view.layers), len(SITES), len(grid)))
    overrides = LevelOverrides(handle, thresholds)
    with overrides.others(other_sites):
        hooks = []
        for layer in view.layers:
            measure = _measure(overrides, layer.index, sums[layer.index], grid)
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


def _measure(overrides: LevelOverrides, layer: int, sums: Floats, grid: Sequence[float]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Tensor) -> None:
        with overrides.dense(layer):
            dense = module.forward(*args, **kwargs)
        for i, site in enumerate(SITES):
            for j, level in enumerate(grid):
                with overrides.at_levels(layer, {site: level}):
                    sums[i, j] += layer_error(module.forward(*args, **kwargs), dense)

    return hook
