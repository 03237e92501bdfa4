"""The prompt at once: matrix products over all its tokens, masks a token, through the decoder's own weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from larosa.decode import ops
from larosa.decode.decoder import Decoder
from larosa.decode.errors import DecodeError
from larosa.decode.matrix import dense
from larosa.decode.selectors import SiteSelector


@torch.no_grad()
def prefill(decoder: Decoder, ids: Tensor, mode: str = "sparse") -> Tensor:
    """Fill the cache with ids [B, T] from position 0 on; returns logits [B, T, vocabulary].

    mode: `sparse`, every token under the decoder's selectors, or `dense`, nothing dropped. Raises DecodeError.
    """
    batch, length = ids.shape
    if batch != decoder.batch or not 0 < length <= decoder.max_len:
        raise DecodeError(
            f"a prompt of {batch} x {length} tokens does not fit a decoder of {decoder.batch} x {decoder.max_len}"
        )
    if mode not in ("sparse", "dense"):
        raise DecodeError(f"prefill={mode}: expected sparse or dense")
    ids = ids.to(decoder.weights.device)
    h = functional.embedding(ids.reshape(-1), decoder.weights.embedding)
    for layer in range(len(decoder.weights.layers)):
        h = _layer(decoder, layer, h, batch, mode == "sparse")
    decoder.tokens[:, :length] = ids
    decoder.place(length)
    return decoder.head(h, "reference").view(batch, length, -1)


def _layer(decoder: Decoder, layer: int, h: Tensor, batch: int, sparse: bool) -> Tensor:
    """h: [B T, D]; returns it behind the layer."""
    h = decoder.adapt(layer, "h1", h, "reference")
    mixed = _attention(decoder, layer, _read(decoder, layer, "h1", h, sparse), batch)
    h = h + _read(decoder, layer, "h2", mixed, sparse)
    gate_up = _read(decoder, layer, "h3", decoder.adapt(layer, "h3", h, "reference"), sparse)
    return h + _read(decoder, layer, "h4", gate_up, sparse)


def _read(decoder: Decoder, layer: int, site: str, before: Tensor, sparse: bool) -> Tensor:
    layer_weights = decoder.weights.layers[layer]
    matrix = dense(layer_weights.matrices[site], before.dtype)  # of codes a copy that lives for this product
    x, keep = decoder.enter(layer, site, before, "reference", None if sparse else SiteSelector(len(matrix)))
    product = (torch.where(ops.selected_mask(x, keep), x, 0) if sparse else x) @ matrix
    return product if site not in layer_weights.biases else product + layer_weights.biases[site]


def _attention(decoder: Decoder, layer: int, qkv: Tensor, batch: int) -> Tensor:
    """Causal attention over the prompt; k and v go into the cache. qkv: [B T, ...]; returns [B T, H hd]."""
    weights = decoder.weights
    parts = ops.heads_of(qkv.view(batch, -1, qkv.shape[1]), weights.kv_heads, weights.head_dim)
    q, k, v = (part.transpose(1, 2) for part in weights.normed(layer, *parts))
    length = q.shape[2]
    cos, sin = decoder.cos[:length], decoder.sin[:length]
    q, k = ops.rotate_heads(q, cos, sin), ops.rotate_heads(k, cos, sin)
    decoder.cache[layer, 0, :, :, :length] = k
    decoder.cache[layer, 1, :, :, :length] = v
    mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return mixed.transpose(1, 2).reshape(len(qkv), -1)
