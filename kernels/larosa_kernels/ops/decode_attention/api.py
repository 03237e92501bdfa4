"""Rotary embedding, append and attention of one new token per row, in one launch."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from larosa_kernels.common.checks import HALF, INTERPRETED, expect, expect_vector, overlaps, use_triton
from larosa_kernels.ops.decode_attention.kernel import decode_attention_slots_kernel, decode_attention_tiles_kernel
from larosa_kernels.ops.decode_attention.reference import decode_attention_reference
from larosa_kernels.ops.decode_attention.workspace import AttentionConfig, cached_workspace, default_attention


@torch.library.custom_op("larosa::decode_attention", mutates_args=("k_cache", "v_cache"))
def _decode_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    position: Tensor,
    norms: Tensor | None,
    eps: float,
    overlap: bool,
    config: list[int],
) -> Tensor:
    # Here, because torch.compile knows no addresses.
    if any(each.data_ptr() % 4 for each in (qkv, k_cache, v_cache)):
        raise ValueError(
            "qkv, k_cache, v_cache: expected addresses that are multiples of 4 (read as pairs); clone them"
        )
    rows, kv_heads, max_len, width = k_cache.shape
    heads = qkv.shape[1] // width - 2 * kv_heads
    per_kv = heads // kv_heads
    splits, tile, num_warps, dot = config
    shape = AttentionConfig(splits, tile, num_warps, bool(dot))
    out = torch.empty(rows, heads * width, dtype=qkv.dtype, device=qkv.device)
    space = cached_workspace(rows, kv_heads, per_kv, width, shape, qkv.device)
    kernel = decode_attention_tiles_kernel if shape.dot else decode_attention_slots_kernel
    positions = {"TILE": shape.tile} if shape.dot else {"STEPS": shape.steps(width), "WARPS": shape.num_warps}
    kernel[(kv_heads, shape.splits, rows)](
        qkv, cos, sin, qkv if norms is None else norms, k_cache, v_cache, position,
        out, space.mix, space.maxima, space.sums, space.counters, width**-0.5 / math.log(2), eps, max_len,
        PER_KV=per_kv, GROUP=shape.group(per_kv), WIDTH=width, SPLITS=shape.splits, **positions,
        NORMED=norms is not None, INTERPRETED=INTERPRETED, OVERLAP=overlap, launch_pdl=overlap,
        num_warps=shape.num_warps,
    )  # fmt: skip
    return out


@_decode_attention.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, k_cache: Tensor, *_: object) -> Tensor:
    return qkv.new_empty((qkv.shape[0], qkv.shape[1] - 2 * k_cache.shape[1] * k_cache.shape[3]))


def _check(
    qkv: Tensor, cos: Tensor, sin: Tensor, k_cache: Tensor, v_cache: Tensor, position: Tensor, triton: bool
) -> None:
    if k_cache.dim() != 4:
        raise ValueError(f"k_cache: expected shape [B, KV, max_len, hd], got {list(k_cache.shape)}")
    rows, kv_heads, max_len, width = k_cache.shape
    heads, rest = divmod(qkv.shape[1], width)
    if rest or heads <= 2 * kv_heads or (heads - 2 * kv_heads) % kv_heads or qkv.shape[0] != rows:
        raise ValueError(
            f"qkv: expected shape [{rows}, (H + {2 * kv_heads}) * {width}] with H a multiple of {kv_heads}, "
            f"got {list(qkv.shape)}"
        )
    if triton and (width < 16 or width & (width - 1)):
        raise ValueError(f"head width: expected a power of two from 16 on, got {width}; backend='reference' takes any")
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        expect(name, cache, [rows, kv_heads, max_len, width], [qkv.dtype], qkv.device)
    for name, table in (("cos", cos), ("sin", sin)):
        expect(name, table, [max_len, width], [*HALF, torch.float32], qkv.device)
    expect("position", position, [1], [torch.int32, torch.int64], qkv.device)


def decode_attention(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    position: Tensor,
    overlap: bool = False,
    backend: str = "auto",
    config: AttentionConfig | None = None,
    norms: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Rotary embedding, append to the cache and attention over positions 0 .. position; softmax in fp32.

    qkv: [B, (H + 2 KV) hd], the queries, keys and values of one new token per row -> out [B, H hd].
    cos, sin: [max_len, hd], the halves equal (rotate_half). k_cache, v_cache: [B, KV, max_len, hd], appended in place
    at `position`, an int tensor [1] on the device, below max_len.
    norms: [2, hd] in qkv's dtype, the weights of an RMSNorm with `eps` over each query head (row 0) and key head (row
    1) in front of the rotary embedding, as in Qwen3; None: no norm.
    overlap: as in `fused_sparse_gemv`; launches in front of it, back to the last without overlap, write nothing but
    qkv. Raises ValueError or TypeError that names the argument, what was expected and what was given.
    """
    triton = use_triton(backend, qkv)
    expect_vector("qkv", qkv, triton)
    _check(qkv, cos, sin, k_cache, v_cache, position, triton)
    if norms is not None:
        expect("norms", norms, [2, k_cache.shape[3]], [qkv.dtype], qkv.device)
    if not triton:
        return decode_attention_reference(qkv, cos, sin, k_cache, v_cache, position, norms, eps)
    rows, kv_heads, _, width = k_cache.shape
    per_kv = (qkv.shape[1] // width - 2 * kv_heads) // kv_heads
    numbers = [int(value) for value in dataclasses.astuple(config or default_attention(rows, kv_heads, per_kv))]
    overlap = overlaps(overlap, qkv)
    result: Tensor = _decode_attention(qkv, cos, sin, k_cache, v_cache, position, norms, eps, overlap, numbers)
    return result
