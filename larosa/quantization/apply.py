"""Quantise the weights of a model that a handle made sparse: first rotated, then rounded.

A rotation is absorbed, and passes its parity check at level 0, before this. So the weights that the transformed model
multiplies with are the ones that are rounded; in the other order, rotation would take rounded weights out of the
format. The evaluated model gets the dequantised values in its own dtype. `remove()` of the handle undoes this too.

The consumers of a site are one matrix [n, m], their outputs concatenated, as in the decoder.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.config.quantization import QuantizationConfig
from larosa.models.architecture import ModelView
from larosa.models.formats import Quantised, quantised
from larosa.quantization.external import quantise_layers
from larosa.sparsity.handle import SparsityHandle


@torch.no_grad()
def quantise(
    model: PreTrainedModel, handle: SparsityHandle, config: QuantizationConfig, tokens: Tensor
) -> dict[str, Any]:
    """Round the weights of `model` in place until `handle` is removed; returns a description for the record.

    tokens: [N, T] to calibrate on. Quantised weights are left in `handle.quantised`. Raises QuantizationError.
    """
    view, before = ModelView(model), dict[nn.Linear, Tensor]()
    handle.quantization = config
    if config.calibrated:
        before = quantise_layers(model, handle, config, tokens[: config.sequences])
    elif config.weights != "none":
        for layer, site in tqdm(view.sites(), total=4 * len(view.layers), desc="quantise", unit="site", leave=False):
            before |= {linear: linear.weight for linear in layer.consumers(site)}
            handle.quantised[layer.index, site] = _rounded(layer.consumers(site), config.scheme, handle)
    error = relative_error(before) if before else None
    if config.head == "w8":
        handle.untie()
        handle.quantised_head = _rounded([view.head], "w8", handle)
    if config.adapters == "w8":
        for adapter in handle.adapters:
            adapter.round_to(quantised(adapter.matrix, "w8"))
    return {"relative_weight_error": error, **config.model_dump(mode="json")}


def relative_error(before: dict[nn.Linear, Tensor]) -> float:
    """Euclidean distance of the linears' weights from what they were, relative to the latter."""
    moved = sum(float((linear.weight - old).double().square().sum()) for linear, old in before.items())
    size = sum(float(old.double().square().sum()) for old in before.values())
    return math.sqrt(moved / size)


def _rounded(linears: list[nn.Linear], scheme: str, handle: SparsityHandle) -> Quantised:
    """Quantise the linears' concatenated weights and exchange them in the model."""
    matrix = torch.cat([linear.weight for linear in linears]).T
    rounded = quantised(matrix, scheme)
    heights = [len(linear.weight) for linear in linears]
    for linear, new in zip(linears, rounded.consumers(heights, matrix.dtype), strict=True):
        handle.exchange(linear, "weight", new)
    return rounded
