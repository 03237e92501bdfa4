"""The mean of what each site drops on the calibration tokens, for bias compensation.

It is measured on the sparse model itself, in one pass and without compensation: x is then what a site really gets,
behind all that earlier sites have dropped. Means of the dense model's inputs would be those of other vectors.
"""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.calibration.statistics import CalibrationError
from larosa.data.tokens import TokenBlock
from larosa.models.architecture import SITES, ModelView
from larosa.sparsity.handle import Plan, apply
from larosa.sparsity.site import SparseSite


class DroppedSums:
    """An observer of sparse sites that sums x - S(x) over tokens, in the coordinates in which consumers read x."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, int], Tensor] = {}
        self.tokens: dict[tuple[str, int], int] = {}

    def observe(self, site: SparseSite, x: Tensor, y: Tensor, _z: Tensor, _z_sparse: Tensor) -> None:
        """Add the rows of x - y, both [tokens, width]."""
        key, total = (site.site, site.layer), (x - y).double().sum(0)
        self.sums[key] = total if key not in self.sums else self.sums[key] + total
        self.tokens[key] = self.tokens.get(key, 0) + len(x)


@torch.no_grad()
def dropped_means(model: PreTrainedModel, plan: Plan, tokens: TokenBlock, batch_size: int) -> dict[str, Tensor]:
    """Site -> [layers, width] float32: E[x - S(x)] over the sparse tokens of the calibration text, on the CPU.

    With token_policy=decode_only no calibration token is sparse, so all of them are made sparse. Raises
    CalibrationError on NaN or infinity, and where the policy leaves no sparse token.
    """
    view, sums = ModelView(model), DroppedSums()
    device = view.embedding.weight.device
    with apply(model, plan) as handle, handle.observed_by(sums), ExitStack() as stack:
        if plan.token_policy.kind == "decode_only":
            stack.enter_context(handle.policy.everywhere())
        for batch in tqdm(torch.split(tokens.ids, batch_size), desc="dropped means", unit="batch", leave=False):
            view.decoder(input_ids=batch.to(device), use_cache=False)
    return {site: torch.stack([_mean(sums, site, i) for i in range(plan.shape.layers)]) for site in SITES}


def _mean(sums: DroppedSums, site: str, layer: int) -> Tensor:
    tokens = sums.tokens.get((site, layer), 0)
    if not tokens:
        raise CalibrationError("the token policy leaves no sparse calibration token: no mean of what is dropped")
    mean = (sums.sums[site, layer] / tokens).float().cpu()
    if not bool(mean.isfinite().all()):
        raise CalibrationError(f"layer {layer}, {site}: the sparse calibration activations hold NaN or infinity")
    return mean
