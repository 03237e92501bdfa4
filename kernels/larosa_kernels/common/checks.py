"""What every op checks before it launches, and which backend runs.

`auto` is Triton on CUDA tensors, the torch reference elsewhere; `triton` on CPU tensors needs TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "triton", "reference"]
Ties = Literal["strict", "keep"]

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
HALF = (torch.bfloat16, torch.float16)
INFINITY_BITS = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00, torch.float32: 0x7F800000}


def use_triton(backend: str, x: Tensor) -> bool:
    """Whether this call runs the kernel rather than the reference."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be auto, triton or reference, got {backend!r}")
    if backend == "auto":
        return x.is_cuda
    if backend == "triton" and not (x.is_cuda or INTERPRETED):
        raise ValueError(
            f"backend triton got a tensor on {x.device}: move it to CUDA, or set TRITON_INTERPRET=1 before the start"
        )
    return backend == "triton"


def expect(
    name: str, tensor: Tensor, shape: Sequence[int], dtypes: Sequence[torch.dtype], device: torch.device
) -> None:
    """Raise unless `tensor` is contiguous, on `device`, of one of `dtypes`, and of `shape`."""
    if tensor.shape != torch.Size(shape):
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: expected dtype {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected device {device}, got {tensor.device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: expected contiguous strides, got {tensor.stride()}; call .contiguous() first")


def expect_vector(name: str, x: Tensor, triton: bool) -> None:
    """Raise unless `x` is [B, n], contiguous, and of a dtype that the backend takes."""
    if x.dim() != 2:
        raise ValueError(f"{name}: expected shape [B, n], got {list(x.shape)}")
    expect(name, x, x.shape, HALF if triton else (*HALF, torch.float32), x.device)


def expect_pair(name: str, pair: Tensor | None, device: torch.device) -> None:
    """Raise unless `pair`, a selection bound or a search range, is None or an int32 tensor [2]."""
    if pair is not None:
        expect(name, pair, [2], [torch.int32], device)


def check_k(k: int, n: int) -> None:
    """Raise unless 1 <= k <= n."""
    if not 1 <= k <= n:
        raise ValueError(f"k: expected 1 to {n}, got {k}")


def check_ties(ties: str) -> None:
    """Raise unless `ties` is one of `Ties`."""
    if ties not in get_args(Ties):
        raise ValueError(f"ties must be strict or keep, got {ties!r}")


@cache
def has_packed_compare(device: torch.device) -> bool:
    """Whether the GPU compares packed pairs of bf16 (`set.bf16x2`): compute capability 9.0 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def overlaps(asked: bool, x: Tensor) -> bool:
    """Whether a launch asked to overlap its predecessor does: programmatic dependent launch, from 9.0 on."""
    return asked and has_packed_compare(x.device)


def refuse_first_use_in_capture(what: str) -> None:
    """Raise while a CUDA graph is captured: buffers that outlive the graph do not belong into its private memory."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(f"{what} needs its buffers before a CUDA graph is captured: run it once with these shapes")
