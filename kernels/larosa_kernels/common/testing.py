"""What the kernel tests and the benchmarks share: hard inputs, poison, comparison in units of rounding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

EPSILON = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
KINDS = ("normal", "ties", "equal", "zeros", "half_zeros", "outliers", "sorted", "tiny", "huge")


def vector(kind: str, rows: int, n: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    """[rows, n] of a kind that selection finds hard.

    ties: few distinct magnitudes; outliers: a few entries 1000 times the rest; sorted: variance falling over a factor
    of 10^4; tiny: subnormal numbers too; huge: up to infinity.
    """
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if kind == "ties":
        x = (x * 2).round() / 2
    elif kind == "equal":
        x = x.sign() * 0.75
    elif kind == "zeros":
        x = x * 0
    elif kind == "half_zeros":
        x = x.relu()
    elif kind == "outliers":
        x[:, :: max(2, n // 5)] *= 1000
    elif kind == "sorted":
        x = x * torch.logspace(0, -4, n, dtype=torch.float64)
    elif kind == "tiny":
        x = x * 4 * torch.finfo(dtype).smallest_normal
    elif kind == "huge":
        x = x * torch.finfo(dtype).max / 2
    elif kind != "normal":
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    return x.to(dtype).to(device)


@contextmanager
def poisoned_empty() -> Iterator[None]:
    """Inside, fresh buffers hold NaN, or -1 for integers: what a kernel forgets to write shows."""
    plain, plain_like = torch.empty, torch.empty_like

    def poison(tensor: Tensor) -> Tensor:
        return tensor.fill_(float("nan") if tensor.is_floating_point() else -1)

    torch.empty = lambda *shape, **more: poison(plain(*shape, **more))
    torch.empty_like = lambda *like, **more: poison(plain_like(*like, **more))
    try:
        yield
    finally:
        torch.empty, torch.empty_like = plain, plain_like


def gemv_tolerance(x: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """[B, m]: the error of an fp32 sum of n exact products in any order, n 2^-24 sum |x_i w_ij|, doubled."""
    size = x.double().abs() @ weight.double().abs()
    if scale is not None:
        size = size * scale.double()
    return 2 * x.shape[1] * 2.0**-24 * size


def exact_gemv(x: Tensor, selected: Tensor, weight: Tensor, **more: Any) -> Tensor:
    """The product in float64, without rounding; more: bias, residual, scale or None."""
    y = torch.where(selected, x, torch.zeros_like(x)).double() @ weight.double()
    if more.get("scale") is not None:
        y = y * more["scale"].double()
    for term in ("bias", "residual"):
        if more.get(term) is not None:
            y = y + more[term].double()
    return y
