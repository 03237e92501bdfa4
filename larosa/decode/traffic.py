"""Bytes that a decode step reads, and the bandwidth that its GPU has."""

from __future__ import annotations

import torch
from larosa_kernels.common.timing import peak_bytes_per_s
from torch import Tensor

from larosa.decode.decoder import Decoder, SiteEvent
from larosa.decode.matrix import read_bytes, stored_bytes
from larosa.decode.ops import selected_mask
from larosa.models.architecture import SITES


def peak_bandwidth(device: torch.device) -> float | None:
    """Bytes a second of the GPU's datasheet; None for a device that is not listed."""
    if device.type != "cuda":
        return None
    return peak_bytes_per_s(torch.cuda.get_device_name(device))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def kept_fractions(decoder: Decoder, steps: int) -> dict[str, list[float]]:
    """Site -> the share of entries that stay in each layer, mean over `steps` from where the decoder stands.

    Of Top-K with strict ties it is known; what a threshold keeps is seen on the decoder's own greedy tokens.
    """
    shape = decoder.weights.shape
    known = {site: [selector.k / shape.sites[site].width for selector in decoder.selectors[site]] for site in SITES}
    if not any(
        selector.threshold is not None or selector.ties == "keep"
        for selectors in decoder.selectors.values()
        for selector in selectors
    ):
        return known
    fractions = {site: [0.0] * shape.layers for site in SITES}

    def watch(event: SiteEvent) -> None:
        fractions[event.site][event.layer] += float(selected_mask(event.x, event.keep).double().mean()) / steps

    start = decoder.length
    for _ in range(steps):
        decoder.token.copy_(decoder.watched(decoder.token, watch).argmax(-1))
    decoder.place(start)
    return fractions


def step_bytes(decoder: Decoder, context: int, shares: dict[str, list[float]]) -> dict[str, int]:
    """Bytes that one step reads after `context` tokens, by what they are; `shares` as from :func:`kept_fractions`."""
    weights, cache = decoder.weights, decoder.cache
    sizes = dict.fromkeys(("projections", "norms", "biases", "adapters", "transforms", "scales"), 0)
    for i, layer in enumerate(weights.layers):
        sizes["projections"] += sum(read_bytes(layer.matrices[site], shares[site][i]) for site in SITES)
        for kind, tensor in layer.tensors():
            if kind != "projections":
                sizes[kind] += _size(tensor)
    sizes["norms"] += _size(weights.final_norm)
    sizes["lm_head"] = stored_bytes(weights.head)
    sizes["kv_cache"] = _size(cache) // decoder.max_len * context
    return sizes | {"total": sum(sizes.values())}
