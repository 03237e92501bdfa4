"""Achieved sparsity: zeros counted in the activations, per token, site and layer."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from larosa.models.architecture import SITES
from larosa.models.sites import ModelShape
from larosa.sparsity.site import SparseSite


class SparsityMeter:
    """An observer of sparse sites that counts zeros of every sparse token."""

    def __init__(self, shape: ModelShape, weights_per_channel: dict[str, int]) -> None:
        self._shape, self._weights_per_channel = shape, weights_per_channel
        self._zeros: dict[tuple[str, int], list[Tensor]] = defaultdict(list)

    def observe(self, site: SparseSite, _x: Tensor, _y: Tensor, _z: Tensor, z_sparse: Tensor) -> None:
        """Count the zeros of each row."""
        self._zeros[site.site, site.layer].append((z_sparse == 0).sum(-1, dtype=torch.int32))

    def summary(self) -> dict[str, Any]:
        """Fractions: mean and standard deviation over tokens per site and layer; weight sparsity over all."""
        layers, sites = self._shape.layers, self._shape.sites
        mean: dict[str, list[float]] = {site: [] for site in SITES}
        std: dict[str, list[float]] = {site: [] for site in SITES}
        tokens = sum(len(counts) for counts in next(iter(self._zeros.values())))
        skipped = torch.zeros(tokens, dtype=torch.float64)
        for site in SITES:
            for layer in range(layers):
                seen = self._zeros.get((site, layer))
                zeros = torch.cat(seen).double().cpu() if seen else torch.zeros(tokens, dtype=torch.float64)
                level = zeros / sites[site].width
                mean[site].append(float(level.mean()))
                std[site].append(float(level.std(correction=0)))
                skipped += zeros * self._weights_per_channel[site]
        sparsity = skipped / (layers * self._shape.layer_weights)
        return {
            "site_mean": mean,
            "site_std_over_tokens": std,
            "weight_sparsity_mean": float(sparsity.mean()),
            "weight_sparsity_std_over_tokens": float(sparsity.std(correction=0)),
            "weight_sparsity_min": float(sparsity.min()),
            "weight_sparsity_max": float(sparsity.max()),
            "sparse_tokens": len(sparsity),
        }


def over_texts(measured: dict[str, dict[str, Any]]) -> dict[str, float] | None:
    """Mean, smallest and largest weight sparsity over the texts; None without texts."""
    levels = [summary["weight_sparsity_mean"] for summary in measured.values()]
    if not levels:
        return None
    return {"mean": sum(levels) / len(levels), "min": min(levels), "max": max(levels)}
