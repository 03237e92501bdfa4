"""Decode attention: norms and rotary embedding of queries and keys, append to the cache, one query per head."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate_heads(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [..., hd]; cos, sin broadcast to it -> x cos + rotate_half(x) sin, each step rounded to x's dtype."""
    low, high = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-high, low], dim=-1) * sin.to(x.dtype)


def norm_heads(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last dimension of x [..., hd], rounded before and after weight [hd]; None: x itself."""
    if weight is None:
        return x
    exact = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + eps)
    return (exact * scale).to(x.dtype) * weight.to(x.dtype)


def decode_attention_reference(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    position: Tensor,
    norms: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """qkv: [B, (H + 2 KV) hd], caches: [B, KV, max_len, hd] written at `position` [1] -> [B, H hd]; fp32 softmax."""
    rows, kv_heads, _, width = k_cache.shape
    heads = qkv.shape[1] // width - 2 * kv_heads
    new = int(position)
    tokens = qkv.view(rows, -1, width)
    q, k, v = tokens[:, :heads], tokens[:, heads:-kv_heads], tokens[:, -kv_heads:]
    if norms is not None:
        q, k = norm_heads(q, norms[0], eps), norm_heads(k, norms[1], eps)
    k_cache[:, :, new] = rotate_heads(k, cos[new], sin[new])
    v_cache[:, :, new] = v
    q = rotate_heads(q, cos[new], sin[new]).view(rows, kv_heads, heads // kv_heads, width).float()
    seen_k, seen_v = k_cache[:, :, : new + 1].float(), v_cache[:, :, : new + 1].float()
    scores = torch.einsum("bgqd,bgtd->bgqt", q, seen_k) * width**-0.5
    out = torch.einsum("bgqt,bgtd->bgqd", scores.softmax(dim=-1), seen_v)
    return out.reshape(rows, heads * width).to(qkv.dtype)
