"""The operations of a decode step are larosa_kernels'; here is what only the decoder says about them.

A selection bound [B, 2] int32 says which entries of x [B, n] are selected, see larosa_kernels/common/selection.py. On
a CPU and with `backend=reference` the kernels' torch references run.
"""

from __future__ import annotations

from typing import Any

import torch
from larosa_kernels import decode_attention, greedy_sample, selected_mask, topk_select
from larosa_kernels import fused_sparse_gemv as _fused_sparse_gemv
from larosa_kernels import rmsnorm_topk as _rmsnorm_topk
from larosa_kernels import sparse_gemv as _sparse_gemv
from larosa_kernels import swiglu_topk as _swiglu_topk
from larosa_kernels.common.gemv import GemvConfig
from larosa_kernels.common.selection import bound_of_all, magnitude_bits
from larosa_kernels.ops.decode_attention.reference import rotate_heads
from larosa_kernels.ops.sparse_gemv.config import launch_config
from torch import Tensor

from larosa.decode.errors import DecodeError
from larosa.decode.matrix import Matrix, PackedMatrix

__all__ = [
    "bound_of_all",
    "decode_attention",
    "fused_sparse_gemv",
    "greedy_sample",
    "launch_shape",
    "magnitude_bits",
    "rotate_heads",
    "selected_mask",
    "sparse_gemv",
    "topk_select",
]


def check_backend(backend: str) -> None:
    """Raise DecodeError where the backend asked for is none."""
    if backend not in ("auto", "triton", "reference"):
        raise DecodeError(f"backend={backend}: expected auto, triton or reference")


def resolve(backend: str, device: torch.device, dtype: torch.dtype) -> str:
    """`triton` or `reference` for what was asked, `auto` included. Raises DecodeError where it cannot run."""
    check_backend(backend)
    half = dtype in (torch.bfloat16, torch.float16)
    if backend == "auto":
        return "triton" if device.type == "cuda" and half else "reference"
    if backend == "triton" and not half:
        raise DecodeError(f"backend=triton runs bfloat16 and float16, not {dtype}: take one, or backend=reference")
    return backend


def threshold_bits(threshold: float, dtype: torch.dtype) -> int:
    """The bits of a calibrated threshold, rounded as torch does when it compares a tensor of `dtype` with it."""
    return int(magnitude_bits(torch.tensor([threshold], dtype=torch.float64).to(dtype)))


def rmsnorm_topk(
    h: Tensor,
    weight: Tensor,
    eps: float,
    k: int,
    ties: str = "strict",
    search_range: Tensor | None = None,
    threshold: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """z = RMSNorm(h) * weight and its selection bound; `threshold` [2] int32 takes the place of k."""
    result: tuple[Tensor, Tensor] = _rmsnorm_topk(
        h, weight, eps, k if threshold is None else None, ties, search_range, threshold, backend
    )
    return result


def swiglu_topk(
    gate_up: Tensor,
    k: int,
    ties: str = "strict",
    search_range: Tensor | None = None,
    threshold: Tensor | None = None,
    gate_threshold: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """h = silu(gate) * up [B, I] from gate_up [B, 2I], and its selection bound.

    `threshold` or `gate_threshold` (CATS) take the place of k.
    """
    by_k = threshold is None and gate_threshold is None
    result: tuple[Tensor, Tensor] = _swiglu_topk(
        gate_up, k if by_k else None, ties, search_range, threshold, gate_threshold, backend
    )
    return result


def fused_sparse_gemv(x: Tensor, matrix: Matrix, k: int | None = None, **more: Any) -> Tensor:
    """larosa_kernels.fused_sparse_gemv on a tensor or a quantised matrix."""
    weight, around = _parts(matrix)
    y: Tensor = _fused_sparse_gemv(x, weight, k, **around, **more)
    return y


def sparse_gemv(
    x: Tensor, bound: Tensor, matrix: Matrix, bias: Tensor | None = None, residual: Tensor | None = None, **more: Any
) -> Tensor:
    """larosa_kernels.sparse_gemv on a tensor or a quantised matrix."""
    weight, around = _parts(matrix)
    y: Tensor = _sparse_gemv(x, bound, weight, bias, residual, **around, **more)
    return y


def launch_shape(matrix: Matrix, outputs: int, selected: int | None) -> GemvConfig:
    """The launch shape of a fused product with `outputs`, of which `selected` rows are read; None: unknown."""
    return launch_config(outputs, _parts(matrix)[0], selected)


def _parts(matrix: Matrix) -> tuple[Tensor, dict[str, Any]]:
    return (matrix.weight, matrix.around) if isinstance(matrix, PackedMatrix) else (matrix, {})


def heads_of(qkv: Tensor, kv_heads: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """q [..., H, hd], k and v [..., KV, hd] of qkv [..., (H + 2 KV) hd]."""
    heads = qkv.view(*qkv.shape[:-1], -1, width)
    queries = heads.shape[-2] - 2 * kv_heads
    return heads[..., :queries, :], heads[..., queries : queries + kv_heads, :], heads[..., queries + kv_heads :, :]
