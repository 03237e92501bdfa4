"""How much a layer's output errs when one of its sites alone is sparse, by level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.architecture import SITES, ModelView
from larosa.sparsity.allocation import Floats
from larosa.sparsity.handle import Plan, apply
from larosa.sparsity.site import SparseSite
from larosa.sparsity.top_k import TopKSparsification


@torch.no_grad()
def error_curves(model: PreTrainedModel, plan: Plan, ids: Tensor, grid: Sequence[float]) -> Floats:
    """[layers, sites, levels] of E ||layer(x; site at level) - layer(x)||^2 / ||layer(x)||^2 over tokens.

    ids [N, T]; x is the dense model's stream, in the plan's coordinates; Top-K with the plan's scores.
    """
    view = ModelView(model)
    sums = np.zeros((len(view.layers), len(SITES), len(grid)))
    with apply(model, plan) as handle, handle.level_zero():
        hooks = []
        for layer in view.layers:
            own = [site for site in handle.sites if site.layer == layer.index]
            hooks.append(layer.module.register_forward_hook(_measure(own, sums[layer.index], grid), with_kwargs=True))
        try:
            for row in tqdm(torch.split(ids, 1), desc="error curves", unit="sequence", leave=False):
                view.decoder(input_ids=row.to(view.embedding.weight.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
    return sums / len(ids)


def _measure(sites: list[SparseSite], sums: Floats, grid: Sequence[float]) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        size = output.float().pow(2).sum(-1)
        for site in sites:
            rule = site.rule
            score = rule.score if isinstance(rule, TopKSparsification) else None
            with site.dropping(True):
                for i, level in enumerate(grid):
                    site.rule = TopKSparsification(rule.width, level, "strict", score)
                    change = (module.forward(*args, **kwargs) - output).float().pow(2).sum(-1)
                    sums[SITES.index(site.site), i] += float((change / size).mean())
            site.rule = rule

    return hook
