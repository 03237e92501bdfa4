"""The decoder's model in a few lines of float64 torch, with masks given: what a step is held against without
transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from larosa.decode import ops
from larosa.decode.matrix import dense
from larosa.decode.weights import DecodeWeights, LayerWeights, Transform

Masks = dict[tuple[int, str], Tensor]
"""(layer, site) -> [T, width] bool, True where an entry stays."""


def norm(h: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm."""
    return h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps) * weight.to(h.dtype)


def transformed(x: Tensor, transform: Transform | None) -> Tensor:
    """x behind its transform, if it has one."""
    if transform is None:
        return x
    matrix = transform.matrix.to(x.dtype)
    if transform.scale is not None:
        matrix = matrix * transform.scale.to(x.dtype)
    if matrix.dim() == 2:
        return x @ matrix
    return torch.einsum("tnb,nbc->tnc", x.view(len(x), len(matrix), -1), matrix).flatten(1)


def entered(layer_weights: LayerWeights, site: str, before: Tensor, eps: float) -> Tensor:
    """A site's vector from its raw material, nothing dropped; see Decoder.enter."""
    if site in ("h1", "h3"):
        return transformed(norm(before, layer_weights.norms[site], eps), layer_weights.transforms.get(site))
    if site == "h2":
        return before if layer_weights.scale is None else before * layer_weights.scale.to(before.dtype)
    gate, up = before.chunk(2, -1)
    return functional.silu(gate) * up


def product(layer_weights: LayerWeights, site: str, x: Tensor) -> Tensor:
    """x times what reads the site, plus bias."""
    y = x @ dense(layer_weights.matrices[site], x.dtype)
    return y if site not in layer_weights.biases else y + layer_weights.biases[site].to(x.dtype)


def attention(weights: DecodeWeights, layer: int, qkv: Tensor) -> Tensor:
    """Causal attention of one sequence. qkv: [T, (H + 2 KV) hd]; returns [T, H hd]."""
    cos, sin = (each.to(qkv.dtype)[:, None] for each in weights.rotary(len(qkv)))
    q, k, v = weights.normed(layer, *ops.heads_of(qkv, weights.kv_heads, weights.head_dim))
    groups = q.shape[1] // k.shape[1]
    q, k = ops.rotate_heads(q, cos, sin), ops.rotate_heads(k, cos, sin).repeat_interleave(groups, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * weights.head_dim**-0.5
    hidden = torch.ones_like(scores, dtype=torch.bool).triu(1)
    chances = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hqk,khd->qhd", chances, v.repeat_interleave(groups, 1)).flatten(1)


def logits(weights: DecodeWeights, ids: Tensor, masks: Masks) -> tuple[Tensor, list[float]]:
    """Logits [T, vocabulary] float64 of ids [T], and kappa of every norm (see evaluation.parity)."""
    kappa: list[float] = []
    eps = float(weights.config.rms_norm_eps)

    def measured(z: Tensor, gamma: Tensor) -> Tensor:
        kappa.append(float((gamma.double().pow(2).sum() / z.pow(2).sum(-1).mean()).sqrt()))
        return z

    def read(layer: int, site: str, before: Tensor) -> Tensor:
        layer_weights = weights.layers[layer]
        if site in layer_weights.norms:
            measured(norm(before, layer_weights.norms[site], eps), layer_weights.norms[site])
        return product(layer_weights, site, entered(layer_weights, site, before, eps) * masks[layer, site])

    def adapted(layer: int, site: str, h: Tensor) -> Tensor:
        matrix = weights.layers[layer].adapters.get(site)
        return h if matrix is None else h @ dense(matrix, h.dtype)

    h = weights.embedding[ids].double()
    for layer in range(len(weights.layers)):
        h = adapted(layer, "h1", h)
        h = h + read(layer, "h2", attention(weights, layer, read(layer, "h1", h)))
        h = h + read(layer, "h4", read(layer, "h3", adapted(layer, "h3", h)))
    z = measured(norm(h, weights.final_norm, eps), weights.final_norm)
    return z @ weights.head_matrix(z.dtype), kappa
