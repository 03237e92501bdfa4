"""Thresholds and output errors of a sparse model on the calibration tokens.

* threshold: the k-th magnitude per token (quantiles over tokens), which a threshold kernel would need; entries are
  weighted by their importance, calibrated thresholds are unchanged;
* site error: `||W x - W x_sparse|| / ||W x||` over all consumers W of a site, on the activations of the sparse model,
  with Theorem A.1 of the paper at the site's level; the outputs of low-rank pairs and compensating biases are included;
* layer error: the layer's update of the residual stream against its dense update on the same input. Bases are
  orthogonal, so the ratio does not depend on the form.

Errors are relative per token and then averaged, because the few tokens with massive activations would dominate a sum.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.models.architecture import SITES, ModelView
from larosa.sparsity.handle import SparsityHandle
from larosa.sparsity.site import SparseSite
from larosa.sparsity.top_k import theoretical_error

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


class ErrorProbe:
    """An observer of sparse sites that keeps thresholds and sums of squared errors."""

    def __init__(self) -> None:
        self.thresholds: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
        self.site_error: dict[tuple[str, int], list[Tensor]] = defaultdict(list)
        self.layer_error: dict[int, list[Tensor]] = defaultdict(list)

    def observe(self, site: SparseSite, x: Tensor, y: Tensor, z: Tensor, _z_sparse: Tensor) -> None:
        """Keep one threshold per token, and the output error of the site's consumers."""
        key = (site.site, site.layer)
        threshold = site.selector.thresholds(z) if len(z) else None
        if threshold is not None:
            self.thresholds[key].append(threshold.reshape(-1).float().cpu())
        if site.gated:  # the input of down is gate times up, so only the layer error is defined
            return
        self.site_error[key].append(output_error(site, x, y))

    @contextmanager
    def watch_layers(self, view: ModelView, sites: list[SparseSite]) -> Iterator[None]:
        """Within: run every layer a second time with its sites dense, on the same input."""
        hooks = []
        for layer in view.layers:
            in_layer = [site for site in sites if site.layer == layer.index]
            hooks.append(layer.module.register_forward_hook(self._compare(layer.index, in_layer), with_kwargs=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _compare(self, index: int, sites: list[SparseSite]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            stream = args[0] if args else kwargs["hidden_states"]
            sparse = output[0] if isinstance(output, tuple) else output
            for site in sites:
                site.enabled = False
            try:
                dense = module.forward(*args, **kwargs)
            finally:
                for site in sites:
                    site.enabled = True
            dense = dense[0] if isinstance(dense, tuple) else dense
            self.layer_error[index].append(_relative(sparse - dense, dense - stream.to(dense.device)))

        return hook


@torch.no_grad()
def probe(model: PreTrainedModel, handle: SparsityHandle, ids: Tensor) -> dict[str, Any]:
    """Thresholds and errors of the sparse model on ids [N, T]. Levels and errors are fractions."""
    view, watcher, shape = ModelView(model), ErrorProbe(), handle.plan.shape
    device = view.embedding.weight.device
    with handle.policy.everywhere(), handle.observed_by(watcher), watcher.watch_layers(view, handle.sites):
        for row in tqdm(torch.split(ids, 1), desc="thresholds and errors", unit="sequence", leave=False):
            view.decoder(input_ids=row.to(device), use_cache=False)
    layers = range(shape.layers)
    levels = {s: [handle.plan.levels.planned(s, i, shape) for i in layers] for s in SITES}
    return {
        "tokens": ids.numel(),
        "threshold_quantiles": QUANTILES,
        "thresholds": {s: [_quantiles(watcher.thresholds[s, i]) for i in layers] for s in SITES},
        "site_error": {s: [_mean(watcher.site_error[s, i]) for i in layers] for s in SITES},
        "site_error_theory": {s: [theoretical_error(level) for level in levels[s]] for s in SITES},
        "layer_error": [_mean(watcher.layer_error[i]) for i in layers],
    }


def output_error(site: SparseSite, x: Tensor, y: Tensor) -> Tensor:
    """[tokens] of the relative output error of the site's consumers on y instead of x, both [tokens, width], low-rank
    pairs included."""
    weight = torch.cat([linear.weight for linear in site.consumers])
    lost = (x - y) @ weight.T
    if site.low_rank is not None:
        lost = lost - site.low_rank.output(x - y)
    if site.compensation is not None:
        lost = lost - site.compensation.output().to(lost.device)
    return _relative(lost, x @ weight.T)


def _relative(error: Tensor, output: Tensor) -> Tensor:
    """[tokens] of ||error|| / ||output||, tokens with zero output excluded."""
    size = output.float().norm(dim=-1).reshape(-1)
    ratio: Tensor = (error.float().norm(dim=-1).reshape(-1) / size)[size > 0]
    return ratio.cpu()


def _mean(values: list[Tensor]) -> float | None:
    tokens = torch.cat(values).double() if values else torch.empty(0)
    return float(tokens.mean()) if len(tokens) else None


def _quantiles(values: list[Tensor]) -> list[float] | None:
    if not values:
        return None
    quantiles = torch.cat(values).double().quantile(torch.tensor(QUANTILES, dtype=torch.float64))
    return [float(value) for value in quantiles]
