"""Products that read only the weight rows of kept entries: `sparse_gemv` told what stays, `select_gemv` choosing it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from larosa_kernels.common.checks import (
    HALF,
    check_k,
    check_ties,
    expect,
    expect_pair,
    expect_vector,
    overlaps,
    use_triton,
)
from larosa_kernels.common.gemv import GemvConfig, Product
from larosa_kernels.ops.sparse_gemv.config import launch_config
from larosa_kernels.ops.sparse_gemv.launch import launch_rows
from larosa_kernels.ops.sparse_gemv.reference import select_gemv_reference, sparse_gemv_reference
from larosa_kernels.ops.sparse_gemv_quantised.config import in_pieces
from larosa_kernels.ops.sparse_gemv_quantised.launch import launch_codes
from larosa_kernels.ops.sparse_gemv_quantised.packing import BLOCK, GROUP, block_count

_LEAST_SCALE = 1e-30


@torch.library.custom_op("larosa::sparse_gemv", mutates_args=())
def _sparse_gemv(
    x: Tensor,
    weight: Tensor,
    keep: Tensor | None,
    k: int,
    strict: bool,
    bracket: Tensor | None,
    norm: Tensor | None,
    eps: float,
    swiglu: bool,
    gate_limit: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    m: int,
    largest_scale: float,
    paired: bool,
    overlap: bool,
    config: list[int],
) -> Tensor:
    product = Product(
        x, weight, keep, k, strict, bracket, norm, eps, swiglu, gate_limit, scale, bias, residual, m, largest_scale,
        paired, overlap,
    )  # fmt: skip
    launch = launch_codes if in_pieces(weight) else launch_rows
    return launch(product, GemvConfig.of(config))


@_sparse_gemv.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    keep: Tensor | None,
    k: int,
    strict: bool,
    bracket: Tensor | None,
    norm: Tensor | None,
    eps: float,
    swiglu: bool,
    gate_limit: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    m: int,
    largest_scale: float,
    paired: bool,
    overlap: bool,
    config: list[int],
) -> Tensor:
    return x.new_empty((x.shape[0], m // (2 if swiglu else 1)))


def _check(
    x: Tensor,
    weight: Tensor,
    m: int,
    outputs: int,
    compiled: bool,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    paired: bool,
) -> None:
    rows, n = x.shape
    packed = weight.dtype == torch.uint8
    if paired and not (packed and m % (2 * GROUP) == 0):
        raise ValueError(f"paired: expected a uint8 weight, gates and ups in groups of {GROUP}: {weight.dtype}, {m}")
    blocks = block_count(m, paired)
    kinds = [*HALF, torch.int8, torch.uint8, *([] if compiled else [torch.float32])]
    expect("weight", weight, [n, blocks * BLOCK // 2 if packed else m], kinds, x.device)
    if (weight.dtype in (torch.int8, torch.uint8)) != (scale is not None):
        raise ValueError(f"scale goes with an int8 or uint8 weight, and only with one: weight is {weight.dtype}")
    if scale is not None and packed:
        expect("scale", scale, [blocks, n, 4], [torch.bfloat16], x.device)
    elif scale is not None:
        expect("scale", scale, [m], [torch.float32], x.device)
    if bias is not None:
        expect("bias", bias, [m], [*HALF, torch.float32], x.device)
    if residual is not None:
        expect("residual", residual, [rows, outputs], [*HALF, torch.float32], x.device)


def _columns(x: Tensor, weight: Tensor, m: int | None) -> int:
    if weight.dim() != 2:
        raise ValueError(f"weight: expected shape [{x.shape[1]}, m], got {list(weight.shape)}")
    if (weight.dtype == torch.uint8) != (m is not None):
        raise ValueError(f"m, the outputs, goes with a uint8 weight, and only with one: weight is {weight.dtype}")
    return weight.shape[1] if m is None else m


def _largest_of(scale: Tensor | None, weight: Tensor, given: float | None) -> float:
    """The bound of the scales that the product of 4-bit codes wants, never so small that entries over it overflow."""
    if weight.dtype != torch.uint8 or scale is None:
        return 1.0
    if given is None:
        if torch.compiler.is_compiling() or (scale.is_cuda and torch.cuda.is_current_stream_capturing()):
            raise ValueError("largest_scale: expected a number inside torch.compile and CUDA graphs, got None")
        given = float(scale.abs().max())
    if not given < math.inf:
        raise ValueError(f"largest_scale: expected a finite number, got {given}")
    return max(given, _LEAST_SCALE)


def sparse_gemv(
    x: Tensor,
    keep: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    m: int | None = None,
    largest_scale: float | None = None,
    paired: bool = False,
    backend: str = "auto",
    config: GemvConfig | None = None,
) -> Tensor:
    """x: [B, n], keep: [B, 2], weight: [n, m] input-major -> y [B, m] in x's dtype.

    fp32 sums in a fixed order; bias [m] and residual [B, m] are added in fp32 before the one rounding. An int8 weight
    comes with scale [m] fp32, one an output; packed 4-bit codes (uint8, packing.py) with scale [blocks, n, 4] bf16,
    m, whether they are paired, and largest_scale, which no |scale| exceeds; without it the GPU is asked and waited for,
    which torch.compile and CUDA graphs do not allow. Sums of codes are exact (codes.py), so their bits depend on no
    launch shape; where an entry is infinite or no number, or times largest_scale too large for fp32, so is no output
    of its row a number.
    Weight rows of dropped entries are never read, nor need those be that a kept zero would meet.
    """
    compiled = use_triton(backend, x)
    expect_vector("x", x, compiled)
    expect("keep", keep, [x.shape[0], 2], [torch.int32], x.device)
    m = _columns(x, weight, m)
    _check(x, weight, m, m, compiled, scale, bias, residual, paired)
    if not compiled:
        return sparse_gemv_reference(x, keep, weight, bias, residual, scale, m, paired)
    way = (config or launch_config(m, weight, None)).numbers
    bound = _largest_of(scale, weight, largest_scale)
    result: Tensor = _sparse_gemv(
        x, weight, keep, x.shape[1], True, None, None, 0.0, False, None, scale, bias, residual, m, bound, paired,
        False, way,
    )  # fmt: skip
    return result


def select_gemv(
    x: Tensor,
    weight: Tensor,
    k: int | None = None,
    ties: str = "strict",
    bracket: Tensor | None = None,
    limit: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    swiglu: bool = False,
    gate_limit: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    m: int | None = None,
    largest_scale: float | None = None,
    paired: bool = False,
    overlap: bool = False,
    backend: str = "auto",
    config: GemvConfig | None = None,
) -> Tensor:
    """One launch for a site: [RMSNorm,] selection, product[, SwiGLU][, residual]. x: [B, n] -> y [B, outputs].

    norm: [n], x is normed with eps and multiplied by it first. The k largest entries stay (None: all), or what passes
    the calibrated pair `limit` [2]; bracket: as in `select`. swiglu: weight [n, 2 I] holds gate, then up, and
    y [B, I] = silu(gate) * up, zero where |silu(gate)| does not pass the pair `gate_limit` [2] (CATS).
    Otherwise as `sparse_gemv`; the roundings are those of the single ops, and with one launch shape so are the bits,
    of codes with any (else of `sparse_gemv` without `compact` where nothing is dropped: no list is made here then).
    overlap: the launch may begin before those in front of it have ended, back to the last without overlap; of what it
    reads they must write nothing but x and residual. Of codes on a GPU from compute capability 9.0 on, elsewhere it
    says nothing.
    Without config the launch shape follows k; a limit's share is unknown here, who knows it gives launch_config's.
    """
    compiled = use_triton(backend, x)
    expect_vector("x", x, compiled)
    n, m = x.shape[1], _columns(x, weight, m)
    if swiglu and m % 2:
        raise ValueError(f"weight: expected an even width (gates, then ups), got {m}")
    if swiglu and weight.dtype == torch.uint8 and not paired:
        raise ValueError("weight: with swiglu expected packed codes that are paired (packing.py)")
    if k is not None and limit is not None:
        raise ValueError("k and limit: expected at most one of them")
    if gate_limit is not None and not swiglu:
        raise ValueError("gate_limit goes with swiglu")
    if residual is not None and swiglu:
        raise ValueError("residual does not go with swiglu")
    k = n if k is None else k
    check_k(k, n)
    check_ties(ties)
    for name, pair in (("bracket", bracket), ("limit", limit), ("gate_limit", gate_limit)):
        expect_pair(name, pair, x.device)
    if norm is not None:
        expect("norm", norm, [n], [x.dtype], x.device)
    outputs = m // 2 if swiglu else m
    _check(x, weight, m, outputs, compiled, scale, bias, residual, paired)
    around: dict[str, Any] = {"bias": bias, "residual": residual, "scale": scale, "m": m, "paired": paired}
    if not compiled:
        return select_gemv_reference(x, weight, k, ties, limit, norm, eps, swiglu, gate_limit, **around)
    way = (config or launch_config(outputs, weight, k if limit is None else None)).numbers
    bound = _largest_of(scale, weight, largest_scale)
    result: Tensor = _sparse_gemv(
        x, weight, limit, k, ties == "strict", bracket, norm, eps, swiglu, gate_limit, scale, bias, residual, m, bound,
        paired, overlaps(overlap, x), way,
    )  # fmt: skip
    return result
