"""Products that read the weight rows of selected entries only.

`sparse_gemv` is told what is selected; `fused_sparse_gemv` selects by itself, and norms before and activates after.
"""

from __future__ import annotations

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
from larosa_kernels.common.gemv import GemvCall, GemvConfig
from larosa_kernels.ops.sparse_gemv.config import launch_config
from larosa_kernels.ops.sparse_gemv.launch import launch_rows
from larosa_kernels.ops.sparse_gemv.reference import fused_sparse_gemv_reference, sparse_gemv_reference
from larosa_kernels.ops.sparse_gemv_quantised.api import (
    QUANTISED,
    check_scale,
    out_features_of,
    scale_bound,
    stored_columns,
)
from larosa_kernels.ops.sparse_gemv_quantised.config import fits_quantised_kernel
from larosa_kernels.ops.sparse_gemv_quantised.launch import launch_quantised


@torch.library.custom_op("larosa::sparse_gemv", mutates_args=())
def _sparse_gemv(
    x: Tensor,
    weight: Tensor,
    bound: Tensor | None,
    k: int,
    strict: bool,
    search_range: Tensor | None,
    norm: Tensor | None,
    eps: float,
    swiglu: bool,
    gate_threshold: Tensor | None,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out_features: int,
    max_scale: float,
    paired: bool,
    overlap: bool,
    config: list[int],
) -> Tensor:
    call = GemvCall(
        x, weight, bound, k, strict, search_range, norm, eps, swiglu, gate_threshold, scale, bias, residual,
        out_features, max_scale, paired, overlap,
    )  # fmt: skip
    launch = launch_quantised if fits_quantised_kernel(weight) else launch_rows
    return launch(call, GemvConfig.from_list(config))


@_sparse_gemv.register_fake
def _(*arguments: Any) -> Tensor:
    return GemvCall(*arguments[:-1]).empty_output()


def _check(
    x: Tensor,
    weight: Tensor,
    out_features: int,
    outputs: int,
    compiled: bool,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    paired: bool,
) -> None:
    """Raise ValueError or TypeError where the weight, or what is added to its product, does not fit x [B, n]."""
    rows, n = x.shape
    dtypes = [*HALF, *QUANTISED, *([] if compiled else [torch.float32])]
    expect("weight", weight, [n, stored_columns(weight, out_features, paired)], dtypes, x.device)
    check_scale(weight, scale, out_features, paired)
    if bias is not None:
        expect("bias", bias, [out_features], [*HALF, torch.float32], x.device)
    if residual is not None:
        expect("residual", residual, [rows, outputs], [*HALF, torch.float32], x.device)


def _columns(x: Tensor, weight: Tensor, out_features: int | None) -> int:
    if weight.dim() != 2:
        raise ValueError(f"weight: expected shape [{x.shape[1]}, m], got {list(weight.shape)}")
    return out_features_of(weight, out_features)


def sparse_gemv(
    x: Tensor,
    bound: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    out_features: int | None = None,
    max_scale: float | None = None,
    paired: bool = False,
    backend: str = "auto",
    config: GemvConfig | None = None,
) -> Tensor:
    """y = sum over selected i of x_i weight[i, :] (+ bias) (+ residual). Rows of dropped entries are never read.

    x: [B, n], bound: [B, 2], weight: [n, m] input-major -> y [B, m] in x's dtype. bias: [m]; residual: [B, m].
    fp32 sums in a fixed order; bias and residual are added in fp32 before the one rounding.
    int8 weight: scale [m] fp32, one per output channel. Packed 4-bit weight (uint8): scale [blocks, n, 4] bf16,
    out_features, whether it is `paired`, and max_scale, which no |scale| exceeds; None asks the GPU and waits for it,
    which torch.compile and CUDA graphs do not allow. Quantised sums are exact, so results do not depend on the launch
    shape; NaN or Inf in a row of x, or an entry times max_scale beyond fp32, makes every output of that row NaN.
    Raises ValueError or TypeError that names the argument, what was expected and what was given.
    """
    compiled = use_triton(backend, x)
    expect_vector("x", x, compiled)
    expect("bound", bound, [x.shape[0], 2], [torch.int32], x.device)
    m = _columns(x, weight, out_features)
    _check(x, weight, m, m, compiled, scale, bias, residual, paired)
    if not compiled:
        return sparse_gemv_reference(x, bound, weight, bias, residual, scale, m, paired)
    shape = (config or launch_config(m, weight, None)).as_list()
    y: Tensor = _sparse_gemv(
        x, weight, bound, x.shape[1], True, None, None, 0.0, False, None, scale, bias, residual, m,
        scale_bound(weight, scale, max_scale), paired, False, shape,
    )  # fmt: skip
    return y


def fused_sparse_gemv(
    x: Tensor,
    weight: Tensor,
    k: int | None = None,
    ties: str = "strict",
    search_range: Tensor | None = None,
    threshold: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    swiglu: bool = False,
    gate_threshold: Tensor | None = None,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    out_features: int | None = None,
    max_scale: float | None = None,
    paired: bool = False,
    overlap: bool = False,
    backend: str = "auto",
    config: GemvConfig | None = None,
) -> Tensor:
    """One launch per site: [RMSNorm,] selection, product[, SwiGLU][, residual]. x: [B, n] -> y [B, outputs].

    norm: [n], x is normed with eps and multiplied by it first. The k largest entries are selected (None: all), or what
    the calibrated bound `threshold` [2] selects; ties, search_range: as in `topk_select`.
    swiglu: weight [n, 2 I] holds gates, then ups, and y [B, I] = silu(gate) * up, zero where |silu(gate)| is not
    selected by the bound `gate_threshold` [2] (CATS). Otherwise as `sparse_gemv`.
    Roundings are those of the single ops. With one launch shape so are the bits, for a quantised weight with any shape
    (elsewhere `sparse_gemv` without `compact` where nothing is dropped: no list is made here then).
    overlap: the launch may begin before those in front of it have ended, back to the last without overlap; of what it
    reads they must write nothing but x and residual. Only for quantised weights from compute capability 9.0 on.
    Without config the launch shape follows k; the share that a threshold selects is not known here: pass
    `launch_config` of it. Raises ValueError or TypeError that names the argument.
    """
    compiled = use_triton(backend, x)
    expect_vector("x", x, compiled)
    n, m = x.shape[1], _columns(x, weight, out_features)
    _check_options(weight, m, k, threshold, swiglu, gate_threshold, residual, paired)
    k = n if k is None else k
    check_k(k, n)
    check_ties(ties)
    for name, pair in (
        ("search_range", search_range), ("threshold", threshold), ("gate_threshold", gate_threshold)
    ):  # fmt: skip
        expect_pair(name, pair, x.device)
    if norm is not None:
        expect("norm", norm, [n], [x.dtype], x.device)
    outputs = m // 2 if swiglu else m
    _check(x, weight, m, outputs, compiled, scale, bias, residual, paired)
    if not compiled:
        return fused_sparse_gemv_reference(
            x, weight, k, ties, threshold, norm, eps, swiglu, gate_threshold, bias, residual, scale, m, paired
        )
    shape = (config or launch_config(outputs, weight, k if threshold is None else None)).as_list()
    y: Tensor = _sparse_gemv(
        x, weight, threshold, k, ties == "strict", search_range, norm, eps, swiglu, gate_threshold, scale, bias,
        residual, m, scale_bound(weight, scale, max_scale), paired, overlaps(overlap, x), shape,
    )  # fmt: skip
    return y


def _check_options(
    weight: Tensor,
    out_features: int,
    k: int | None,
    threshold: Tensor | None,
    swiglu: bool,
    gate_threshold: Tensor | None,
    residual: Tensor | None,
    paired: bool,
) -> None:
    """Raise ValueError for options that exclude each other."""
    if swiglu and out_features % 2:
        raise ValueError(f"weight: expected an even width (gates, then ups), got {out_features}")
    if swiglu and weight.dtype == torch.uint8 and not paired:
        raise ValueError(
            "weight: with swiglu expected a packed weight that is paired (sparse_gemv_quantised/packing.py)"
        )
    if k is not None and threshold is not None:
        raise ValueError("k and threshold: expected at most one of them")
    if gate_threshold is not None and not swiglu:
        raise ValueError("gate_threshold goes with swiglu")
    if residual is not None and swiglu:
        raise ValueError("residual does not go with swiglu")
