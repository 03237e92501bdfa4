"""y = sum over kept i of x_i weight[i, :] (+ bias) (+ residual), weights input-major."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from larosa_kernels.dispatch import HALF, INTERPRETED, expect, expect_vector, use_triton
from larosa_kernels.sparse_gemv.config import GemvConfig, gemv_config
from larosa_kernels.sparse_gemv.kernel import sparse_gemv_kernel
from larosa_kernels.sparse_gemv.reference import sparse_gemv_reference
from larosa_kernels.sparse_gemv.workspace import GemvWorkspace, cached_workspace


def launch_sparse_gemv(
    x: Tensor,
    keep: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    config: GemvConfig,
    space: GemvWorkspace,
    y: Tensor,
) -> None:
    """Run the kernel on checked tensors; y: [B, m] is written whole."""
    rows, n = x.shape
    m = weight.shape[1]
    sparse_gemv_kernel[(config.blocks(m), config.splits, rows)](
        x, keep, weight, y if scale is None else scale, y if bias is None else bias,
        y if residual is None else residual, y, space.partials, space.counters, space.rows, space.values, n, m,
        SPLITS=config.splits, SLOTS=config.slots(n), COLUMNS=config.columns, ROWS=config.rows,
        STAGES=config.stages, DEFER=config.defer, BATCH=min(16, 1 << (config.splits - 1).bit_length()),
        HAS_SCALE=scale is not None, HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None,
        INTERPRETED=INTERPRETED, num_warps=config.num_warps,
    )  # fmt: skip


@torch.library.custom_op("larosa::sparse_gemv", mutates_args=())
def _sparse_gemv(
    x: Tensor,
    keep: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    config: list[int],
) -> Tensor:
    columns, rows, splits, num_warps, stages, defer = config
    way = GemvConfig(columns, rows, splits, num_warps, stages, bool(defer))
    y = torch.empty(x.shape[0], weight.shape[1], dtype=x.dtype, device=x.device)
    space = cached_workspace(x.shape[0], weight.shape[0], weight.shape[1], way, x.device)
    launch_sparse_gemv(x, keep, weight, bias, residual, scale, way, space, y)
    return y


@_sparse_gemv.register_fake
def _(
    x: Tensor,
    keep: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    config: list[int],
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[1]))


def _check(
    x: Tensor,
    keep: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: Tensor | None,
    triton: bool,
) -> None:
    expect_vector("x", x, triton)
    rows, n = x.shape
    expect("keep", keep, [rows, 2], [torch.int32], x.device)
    if weight.dim() != 2:
        raise ValueError(f"weight: expected shape [{n}, m], got {list(weight.shape)}")
    m = weight.shape[1]
    expect("weight", weight, [n, m], [*HALF, torch.int8, *([] if triton else [torch.float32])], x.device)
    if (weight.dtype == torch.int8) != (scale is not None):
        raise ValueError(f"scale goes with an int8 weight, and only with one: weight is {weight.dtype}")
    if scale is not None:
        expect("scale", scale, [m], [torch.float32], x.device)
    if bias is not None:
        expect("bias", bias, [m], [*HALF, torch.float32], x.device)
    if residual is not None:
        expect("residual", residual, [rows, m], [*HALF, torch.float32], x.device)


def sparse_gemv(
    x: Tensor,
    keep: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    backend: str = "auto",
    config: GemvConfig | None = None,
    workspace: GemvWorkspace | None = None,
) -> Tensor:
    """x: [B, n], keep: [B, 2], weight: [n, m] input-major -> y [B, m] in x's dtype.

    fp32 sums in a fixed order; bias [m] and residual [B, m] are added in fp32 before the one rounding. An int8 weight
    comes with scale [m] fp32, one an output. Weight rows of dropped entries are never read. `workspace` is for calls
    that may overlap with others of this shape; without it a buffer cached per shape is used (and torch.compile works).
    """
    triton = use_triton(backend, x)
    _check(x, keep, weight, bias, residual, scale, triton)
    if not triton:
        return sparse_gemv_reference(x, keep, weight, bias, residual, scale)
    way = config or gemv_config(weight.shape[0], weight.shape[1])
    if workspace is not None:
        y = torch.empty(x.shape[0], weight.shape[1], dtype=x.dtype, device=x.device)
        launch_sparse_gemv(x, keep, weight, bias, residual, scale, way, workspace, y)
        return y
    result: Tensor = _sparse_gemv(x, keep, weight, bias, residual, scale, list(map(int, dataclasses.astuple(way))))
    return result
