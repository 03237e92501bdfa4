"""Output error of the consumers of each site under a plan, on the activations of the dense model; R-Sparse selects by
it.

A site does not see what other sites drop, so plans can be compared and combined per site. The error is relative to the
dense output per token, as in evaluation.error, and averaged over the calibration tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.data.tokens import TokenBlock
from larosa.evaluation.error import output_error
from larosa.models.architecture import SITES, ModelView
from larosa.sparsity.handle import Plan, apply
from larosa.sparsity.site import SparseSite

SiteErrors = dict[str, list[float]]
"""Site -> the mean relative output error of each layer."""


class _Sums:
    """An observer of sites at level 0 that computes the error that dropping would cause."""

    def __init__(self, layers: int) -> None:
        self.errors = {site: [0.0] * layers for site in SITES}
        self.tokens = {site: [0] * layers for site in SITES}

    def observe(self, site: SparseSite, x: Tensor, _y: Tensor, _z: Tensor, _z_sparse: Tensor) -> None:
        """Add the errors of x, [tokens, width]."""
        token_errors = output_error(site, x, site.selector(x)).double()
        self.errors[site.site][site.layer] += float(token_errors.sum())
        self.tokens[site.site][site.layer] += len(token_errors)


@torch.no_grad()
def site_errors(model: PreTrainedModel, plan: Plan, tokens: TokenBlock, batch_size: int) -> SiteErrors:
    """The errors of a plan in the model's own basis, on the calibration tokens of the dense model."""
    sums, view = _Sums(plan.shape.layers), ModelView(model)
    device = view.embedding.weight.device
    with apply(model, plan) as handle, handle.level_zero(), handle.observed_by(sums):
        for batch in tqdm(torch.split(tokens.ids, batch_size), desc="site errors", unit="batch", leave=False):
            view.decoder(input_ids=batch.to(device), use_cache=False)
    return {s: [e / max(n, 1) for e, n in zip(sums.errors[s], sums.tokens[s], strict=True)] for s in SITES}
