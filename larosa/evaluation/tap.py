"""Activations of one site of one layer, of the dense model or of a sparse one at level 0."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from larosa.models.architecture import ModelView
from larosa.sparsity.handle import SparsityHandle
from larosa.sparsity.site import SparseSite


class _Tap:
    """An observer that keeps the activations of one site."""

    def __init__(self, layer: int, site: str) -> None:
        self.at = (layer, site)
        self.seen: list[tuple[SparseSite, Tensor, Tensor]] = []

    def observe(self, site: SparseSite, x: Tensor, _y: Tensor, z: Tensor, _z_sparse: Tensor) -> None:
        """Keep x and z, both [tokens, width]."""
        if (site.layer, site.site) == self.at:
            self.seen.append((site, x, z))


@torch.no_grad()
def activations(
    model: PreTrainedModel, handle: SparsityHandle, ids: Tensor, layer: int, site: str
) -> tuple[SparseSite, Tensor, Tensor]:
    """The site; x, [T, width], the input of its consumers; z, the same in the basis that entries are ranked in. ids:
    [T]."""
    tap, view = _Tap(layer, site), ModelView(model)
    with handle.level_zero(), handle.observed_by(tap):
        view.decoder(input_ids=ids[None].to(view.embedding.weight.device), use_cache=False)
    return tap.seen[0]


@torch.no_grad()
def dense_activations(model: PreTrainedModel, ids: Tensor, layer: int, site: str) -> Tensor:
    """[T, width]: the input of a site's consumers in `model`. ids: [T]."""
    view, seen = ModelView(model), []
    consumer = view.layers[layer].consumers(site)[0]
    hook = consumer.register_forward_pre_hook(lambda _module, args: seen.append(args[0][0]))
    try:
        view.decoder(input_ids=ids[None].to(view.embedding.weight.device), use_cache=False)
    finally:
        hook.remove()
    inputs: Tensor = seen[0]
    return inputs
