"""Top-K over each row of a matrix, as a `Keep` pair (larosa_kernels/ops/topk_select/reference.py)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from larosa_kernels.common.checks import check_k, check_ties, expect_pair, expect_vector, use_triton
from larosa_kernels.common.search_config import SearchConfig, default_search, search_arguments
from larosa_kernels.ops.topk_select.kernel import select_kernel
from larosa_kernels.ops.topk_select.reference import select_reference


@torch.library.custom_op("larosa::select", mutates_args=())
def _select(x: Tensor, k: int, strict: bool, bracket: Tensor | None, config: list[int]) -> Tensor:
    rows, n = x.shape
    keep = torch.empty(rows, 2, dtype=torch.int32, device=x.device)
    arguments = search_arguments(x, strict, bracket is not None, config[0], bool(config[1]))
    select_kernel[(rows,)](x, bracket if bracket is not None else keep, keep, n, k, **arguments)
    return keep


@_select.register_fake
def _(x: Tensor, k: int, strict: bool, bracket: Tensor | None, config: list[int]) -> Tensor:
    return x.new_empty((x.shape[0], 2), dtype=torch.int32)


def select(
    x: Tensor,
    k: int,
    ties: str = "strict",
    bracket: Tensor | None = None,
    backend: str = "auto",
    config: SearchConfig | None = None,
) -> Tensor:
    """x: [B, n] bf16 or fp16 -> keep [B, 2] int32 of the k largest magnitudes, exact.

    bracket: [2] int32 (low_bits, high_bits) to search first; the result does not depend on it.
    """
    triton = use_triton(backend, x)
    expect_vector("x", x, triton)
    check_k(k, x.shape[1])
    check_ties(ties)
    expect_pair("bracket", bracket, x.device)
    if not triton:
        return select_reference(x, k, ties)
    way = config or default_search(x.shape[1])
    result: Tensor = _select(x, k, ties == "strict", bracket, [int(v) for v in dataclasses.astuple(way)])
    return result
