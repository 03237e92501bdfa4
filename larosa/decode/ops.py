"""The operations of a decode step are larosa_kernels'; here is what only the decoder says about them.

`keep` [B, 2] int32 says which entries of x [B, n] stay, see larosa_kernels/common/selection.py. On a CPU and with
`backend=reference` the kernels' torch references run.
"""

from __future__ import annotations

from typing import Any

import torch
from larosa_kernels import attend, kept_mask, pick, select
from larosa_kernels import norm_select as _norm_select
from larosa_kernels import select_gemv as _select_gemv
from larosa_kernels import sparse_gemv as _sparse_gemv
from larosa_kernels import swiglu_select as _swiglu_select
from larosa_kernels.common.gemv import GemvConfig
from larosa_kernels.common.selection import keep_all, magnitude_bits
from larosa_kernels.ops.decode_attention.reference import rotate_heads
from larosa_kernels.ops.sparse_gemv.config import launch_config
from torch import Tensor

from larosa.decode.errors import DecodeError
from larosa.decode.matrix import Matrix, PackedMatrix

__all__ = [
    "attend",
    "keep_all",
    "kept",
    "launch_shape",
    "magnitude_bits",
    "pick",
    "rotate",
    "select",
    "select_gemv",
    "sparse_gemv",
]

kept = kept_mask
rotate = rotate_heads


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


def limit_bits(limit: float, dtype: torch.dtype) -> int:
    """The bits of a calibrated limit, rounded as torch rounds it when a tensor of `dtype` is compared with it."""
    return int(magnitude_bits(torch.tensor([limit], dtype=torch.float64).to(dtype)))


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
    """z = RMSNorm(h) * weight and its keep; `limit` [2] int32 takes the place of k."""
    known = k if limit is None else None
    found: tuple[Tensor, Tensor] = _norm_select(
        h, weight, eps, known, ties=ties, bracket=bracket, limit=limit, backend=backend
    )
    return found


def swiglu_select(
    gate_up: Tensor,
    k: int,
    ties: str = "strict",
    bracket: Tensor | None = None,
    limit: Tensor | None = None,
    gate_limit: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """h = silu(gate) * up [B, I] from gate_up [B, 2I] and its keep; `limit` or `gate_limit` (CATS) in k's place."""
    known = k if limit is None and gate_limit is None else None
    found: tuple[Tensor, Tensor] = _swiglu_select(
        gate_up, known, ties=ties, bracket=bracket, limit=limit, gate_limit=gate_limit, backend=backend
    )
    return found


def select_gemv(x: Tensor, matrix: Matrix, k: int | None = None, **more: Any) -> Tensor:
    """larosa_kernels.select_gemv on a tensor or on codes."""
    weight, around = _parts(matrix)
    found: Tensor = _select_gemv(x, weight, k, **around, **more)
    return found


def sparse_gemv(
    x: Tensor, keep: Tensor, matrix: Matrix, bias: Tensor | None = None, residual: Tensor | None = None, **more: Any
) -> Tensor:
    """larosa_kernels.sparse_gemv on a tensor or on codes."""
    weight, around = _parts(matrix)
    found: Tensor = _sparse_gemv(x, keep, weight, bias, residual, **around, **more)
    return found


def launch_shape(matrix: Matrix, outputs: int, kept: int | None) -> GemvConfig:
    """What a fused launch that gives `outputs` takes for this matrix of which `kept` rows stay; None: unknown."""
    return launch_config(outputs, _parts(matrix)[0], kept)


def _parts(matrix: Matrix) -> tuple[Tensor, dict[str, Any]]:
    return (matrix.weight, matrix.around) if isinstance(matrix, PackedMatrix) else (matrix, {})


def heads_of(qkv: Tensor, kv_heads: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """q [..., H, hd], k and v [..., KV, hd] of qkv [..., (H + 2 KV) hd]."""
    heads = qkv.view(*qkv.shape[:-1], -1, width)
    own = heads.shape[-2] - 2 * kv_heads
    return heads[..., :own, :], heads[..., own : own + kv_heads, :], heads[..., own + kv_heads :, :]
