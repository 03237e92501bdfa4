"""Rotary embedding, append and attention of one new token a row."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from larosa_kernels.common.checks import HALF, INTERPRETED, expect, expect_vector, overlaps, use_triton
from larosa_kernels.ops.decode_attention.kernel import attend_by_slot, attend_by_tile
from larosa_kernels.ops.decode_attention.reference import attend_reference
from larosa_kernels.ops.decode_attention.workspace import AttendConfig, cached_workspace, default_attend


@torch.library.custom_op("larosa::attend", mutates_args=("k_cache", "v_cache"))
def _attend(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    position: Tensor,
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
    per = heads // kv_heads
    splits, tile, num_warps, dot = config
    way = AttendConfig(splits, tile, num_warps, bool(dot))
    out = torch.empty(rows, heads * width, dtype=qkv.dtype, device=qkv.device)
    space = cached_workspace(rows, kv_heads, per, width, way, qkv.device)
    kernel = attend_by_tile if way.dot else attend_by_slot
    shape = {"TILE": way.tile} if way.dot else {"STEPS": way.steps(width), "WARPS": way.num_warps}
    kernel[(kv_heads, way.splits, rows)](
        qkv, cos, sin, k_cache, v_cache, position, out, space.mix, space.maxima, space.sums, space.counters,
        width**-0.5 / math.log(2), max_len, PER=per, GROUP=way.group(per), WIDTH=width, SPLITS=way.splits, **shape,
        INTERPRETED=INTERPRETED, OVERLAP=overlap, launch_pdl=overlap, num_warps=way.num_warps,
    )  # fmt: skip
    return out


@_attend.register_fake
def _(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    position: Tensor,
    overlap: bool,
    config: list[int],
) -> Tensor:
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


def attend(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    position: Tensor,
    overlap: bool = False,
    backend: str = "auto",
    config: AttendConfig | None = None,
) -> Tensor:
    """qkv: [B, (H + 2 KV) hd] = queries, keys, values of one new token a row -> out [B, H hd].

    cos, sin: [max_len, hd], the halves equal (rotate_half); caches: [B, KV, max_len, hd], appended in place at
    `position`, an int tensor [1] on the device, below max_len. Attention runs over 0 .. position, softmax in fp32.
    overlap: as in `select_gemv`: launches in front of it, back to the last without overlap, write nothing but qkv.
    """
    triton = use_triton(backend, qkv)
    expect_vector("qkv", qkv, triton)
    _check(qkv, cos, sin, k_cache, v_cache, position, triton)
    if not triton:
        return attend_reference(qkv, cos, sin, k_cache, v_cache, position)
    rows, kv_heads, _, width = k_cache.shape
    per = (qkv.shape[1] // width - 2 * kv_heads) // kv_heads
    numbers = [int(v) for v in dataclasses.astuple(config or default_attend(rows, kv_heads, per))]
    result: Tensor = _attend(qkv, cos, sin, k_cache, v_cache, position, overlaps(overlap, qkv), numbers)
    return result
