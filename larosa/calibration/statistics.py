"""Streaming statistics of the dense model on the calibration tokens.

For h1 and h3 of every layer: the uncentred second moment of the normed input *without* the norm's weight
gamma, `S = mean x x^T`, `x = h / rms(h)`. With gamma it is `diag(gamma) S diag(gamma)`, so one pass serves the
absorbed form (gamma folded into the weights) and the simulated one. Memory is D x D per site; activations are
not kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.data.tokens import TokenBlock
from larosa.errors import LarosaError
from larosa.models.architecture import ModelView, norm_epsilon
from larosa.models.inputs import check_ids


class CalibrationError(LarosaError):
    """Calibration cannot give a meaningful result."""


NORM_SITES = ("h1", "h3")


@torch.no_grad()
def second_moments(model: PreTrainedModel, tokens: TokenBlock, batch_size: int) -> Tensor:
    """[layers, 2, D, D] float32 on the CPU: h1 and h3 of every layer, without gamma.

    Raises CalibrationError on fewer tokens than dimensions and on NaN or infinity, InputError on ids that the model
    cannot read.
    """
    check_ids(tokens.ids, model.config)
    view = ModelView(model)
    D = model.config.hidden_size
    if tokens.ids.numel() < D:
        raise CalibrationError(
            f"{tokens.ids.numel()} calibration tokens cannot span {D} dimensions: give at least {D} (the paper: 32768)"
        )
    sums: dict[tuple[int, str], Tensor] = {}
    hooks = []
    for layer in view.layers:
        for site in NORM_SITES:
            norm = layer.norm(site)
            sums[layer.index, site] = torch.zeros(D, D, device=_device(norm))
            hooks.append(norm.register_forward_pre_hook(_collector(sums[layer.index, site])))
    device = _device(view.embedding)
    try:
        for batch in tqdm(torch.split(tokens.ids, batch_size), desc="calibrate", unit="batch", leave=False):
            view.decoder(input_ids=batch.to(device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    for (index, site), total in sums.items():
        if not bool(total.isfinite().all()):
            raise CalibrationError(
                f"layer {index}, {site}: the calibration activations hold NaN or infinity; check the weights "
                "and model.dtype (float16 overflows in some models: use bfloat16 or float32)"
            )
    count = tokens.ids.numel()
    rows = [torch.stack([sums[layer.index, s].div(count).cpu() for s in NORM_SITES]) for layer in view.layers]
    return torch.stack(rows)


def with_gamma(moments: Tensor, model: PreTrainedModel) -> Tensor:
    """The same moments for `gamma * x`. moments: [layers, 2, D, D]."""
    scaled = moments.double()
    for layer in ModelView(model).layers:
        for i, site in enumerate(NORM_SITES):
            gamma = layer.norm(site).get_parameter("weight").double().cpu()
            scaled[layer.index, i] *= gamma[:, None] * gamma[None, :]
    return scaled


WINA_CONSUMERS = {"h1": slice(1, 2), "h3": slice(0, 1)}
"""k and gate: their right singular vectors are WINA's transform (arXiv 2505.19427)."""
ALL_CONSUMERS = {"h1": slice(None), "h3": slice(None)}


def weight_moments(model: PreTrainedModel, chosen: dict[str, slice]) -> Tensor:
    """[layers, 2, D, D] float64 on the CPU: `W^T W` over the chosen consumers, with the norm's gamma folded in."""
    layers = ModelView(model).layers
    moments = torch.empty(len(layers), 2, model.config.hidden_size, model.config.hidden_size, dtype=torch.float64)
    for layer in layers:
        for i, site in enumerate(NORM_SITES):
            gamma = layer.norm(site).get_parameter("weight").double()
            weights = [linear.weight.double() * gamma for linear in layer.consumers(site)[chosen[site]]]
            moments[layer.index, i] = torch.stack([W.T @ W for W in weights]).sum(0).cpu()
    return moments


def _collector(total: Tensor) -> Any:
    def hook(norm: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].float().reshape(-1, args[0].shape[-1])
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm_epsilon(norm))
        total.add_(x.T @ x)

    return hook


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
