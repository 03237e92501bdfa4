"""The operations of a decode step: larosa_kernels where it is installed, else the same in readable torch.

`keep` [B, 2] int32 says which entries of x [B, n] stay: bits(|x_i|) > keep[b, 0], or equal to it and i <= keep[b, 1].
bits() is the pattern of the magnitude read as an integer, which orders magnitudes of one dtype.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from larosa.decode.errors import DecodeError

_KERNELS: Any = import_module("larosa_kernels") if find_spec("larosa_kernels") else None


def check_backend(backend: str) -> None:
    """Raise DecodeError where the backend asked for is not there."""
    if backend not in ("auto", "triton", "reference"):
        raise DecodeError(f"backend={backend}: expected auto, triton or reference")
    if backend == "triton" and _KERNELS is None:
        raise DecodeError("backend=triton needs the package larosa_kernels: install larosa, or PYTHONPATH=kernels")


def resolve(backend: str, device: torch.device) -> str:
    """`triton` or `reference` for what was asked, `auto` included. Raises DecodeError where it cannot run."""
    check_backend(backend)
    if backend == "auto":
        return "triton" if device.type == "cuda" and _KERNELS is not None else "reference"
    return backend


def magnitude_bits(x: Tensor) -> Tensor:
    """The magnitudes' bit patterns as int32. x: float32, bfloat16 or float16."""
    integer = torch.int32 if x.element_size() == 4 else torch.int16
    return x.abs().contiguous().view(integer).to(torch.int32)


def limit_bits(limit: float, dtype: torch.dtype) -> int:
    """The bits of a calibrated limit, rounded as torch rounds it when a tensor of `dtype` is compared with it."""
    return int(magnitude_bits(torch.tensor([limit], dtype=torch.float64).to(dtype)))


def kept(x: Tensor, keep: Tensor) -> Tensor:
    """[B, n] bool, True where an entry stays."""
    bits, index = magnitude_bits(x), torch.arange(x.shape[1], device=x.device)
    limit, last = keep[:, :1], keep[:, 1:]
    return (bits > limit) | ((bits == limit) & (index <= last))


def keep_all(rows: int, width: int, device: torch.device) -> Tensor:
    """[rows, 2]: everything stays."""
    return torch.tensor([[0, width]], dtype=torch.int32, device=device).repeat(rows, 1)


def select(x: Tensor, k: int, ties: str = "strict", bracket: Tensor | None = None, backend: str = "auto") -> Tensor:
    """The keep [B, 2] of the k largest magnitudes of each row; `bracket` [2] int32: bits to search first."""
    if _KERNELS is not None:
        found: Tensor = _KERNELS.select(x, k, ties=ties, bracket=bracket, backend=backend)
        return found
    rows, width = x.shape
    if k >= width:
        return keep_all(rows, width, x.device)
    bits = magnitude_bits(x)
    kth = bits.sort(dim=-1, descending=True).values[:, k - 1 : k]
    equal, room = bits == kth, k - (bits > kth).sum(-1, keepdim=True)
    index = torch.arange(width, device=x.device)
    last = torch.where(equal & (equal.cumsum(-1) <= room), index, -1).amax(-1, keepdim=True)
    return torch.cat([kth, last if ties == "strict" else torch.full_like(last, width)], -1).to(torch.int32)


def _keep(x: Tensor, k: int, ties: str, bracket: Tensor | None, limit: Tensor | None) -> Tensor:
    return select(x, k, ties, bracket) if limit is None else limit.expand(len(x), 2)


def norm_select(
    h: Tensor,
    weight: Tensor,
    eps: float,
    k: int,
    ties: str = "strict",
    bracket: Tensor | None = None,
    limit: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """z = RMSNorm(h) * weight as transformers rounds it, and its keep. `limit` [2] int32 takes the place of k."""
    if _KERNELS is not None:
        out: tuple[Tensor, Tensor] = _KERNELS.norm_select(
            h, weight, eps, k, ties=ties, bracket=bracket, limit=limit, backend=backend
        )
        return out
    exact = h.float()
    z = weight * (exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + eps)).to(h.dtype)
    return z, _keep(z, k, ties, bracket, limit)


def swiglu_select(
    gate_up: Tensor,
    k: int,
    ties: str = "strict",
    bracket: Tensor | None = None,
    limit: Tensor | None = None,
    gate_limit: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """h = silu(gate) * up [B, I] from gate_up [B, 2I], and its keep.

    gate_limit [2] int32 (CATS): h is zero where |silu(gate)| does not exceed it, and what is not zero stays.
    """
    if _KERNELS is not None:
        out: tuple[Tensor, Tensor] = _KERNELS.swiglu_select(
            gate_up, k, ties=ties, bracket=bracket, limit=limit, gate_limit=gate_limit, backend=backend
        )
        return out
    gate, up = gate_up.chunk(2, -1)
    gate = functional.silu(gate)
    if gate_limit is not None:
        gate = gate * kept(gate, gate_limit.expand(len(gate), 2))
        limit = torch.tensor([0, -1], dtype=torch.int32, device=gate.device)
    h = gate * up
    return h, _keep(h, k, ties, bracket, limit)


def sparse_gemv(
    x: Tensor,
    keep: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The kept entries of x [B, n] times weight [n, m] (int8 with `scale` [m]), plus bias [m] and residual [B, m]."""
    if _KERNELS is not None:
        more = {} if scale is None else {"scale": scale}
        y: Tensor = _KERNELS.sparse_gemv(x, keep, weight, bias=bias, residual=residual, backend=backend, **more)
        return y
    total = torch.where(kept(x, keep), x, 0).float() @ weight.float()
    if scale is not None:
        total = total * scale
    for more_ in (bias, residual):
        total = total if more_ is None else total + more_.float()
    return total.to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE as transformers does it. x: [..., hd]; cos, sin broadcast to it."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def heads_of(qkv: Tensor, kv_heads: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """q [..., H, hd], k and v [..., KV, hd] of qkv [..., (H + 2 KV) hd]."""
    heads = qkv.view(*qkv.shape[:-1], -1, width)
    own = heads.shape[-2] - 2 * kv_heads
    return heads[..., :own, :], heads[..., own : own + kv_heads, :], heads[..., own + kv_heads :, :]


def attend(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    position: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Attention of one new token: RoPE on q and k, k and v appended at `position` [1] int32, softmax over 0..position.

    qkv [B, (H + 2 KV) hd]; cos, sin [max_len, hd]; caches [B, KV, max_len, hd]; returns [B, H hd].
    """
    if _KERNELS is not None:
        out: Tensor = _KERNELS.attend(qkv, cos, sin, k_cache, v_cache, position, backend=backend)
        return out
    batch, kv_heads, length, width = k_cache.shape
    where = position.long()
    q, k, v = heads_of(qkv, kv_heads, width)
    q, k = rotate(q, cos[where], sin[where]), rotate(k, cos[where], sin[where])
    k_cache.index_copy_(2, where, k[:, :, None])
    v_cache.index_copy_(2, where, v[:, :, None])
    grouped = q.view(batch, kv_heads, -1, width).float()
    scores = grouped @ k_cache.float().transpose(-1, -2) * width**-0.5
    seen = torch.arange(length, device=qkv.device) <= where
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    mixed: Tensor = weights @ v_cache.float()
    return mixed.to(qkv.dtype).reshape(batch, -1)
