"""RMSNorm and the selection of its largest outputs in one launch."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from larosa_kernels.common.checks import (
    INTERPRETED,
    check_k,
    check_ties,
    expect,
    expect_pair,
    expect_vector,
    use_triton,
)
from larosa_kernels.common.search_config import SearchConfig, default_search, search_arguments
from larosa_kernels.ops.rmsnorm_topk.kernel import norm_select_kernel
from larosa_kernels.ops.rmsnorm_topk.reference import norm_select_reference


@torch.library.custom_op("larosa::norm_select", mutates_args=())
def _norm_select(
    h: Tensor,
    weight: Tensor,
    eps: float,
    k: int,
    strict: bool,
    bracket: Tensor | None,
    limit: Tensor | None,
    config: list[int],
) -> tuple[Tensor, Tensor]:
    rows, n = h.shape
    z = torch.empty_like(h)
    keep = torch.empty(rows, 2, dtype=torch.int32, device=h.device)
    arguments = search_arguments(h, strict, bracket is not None, config[0], bool(config[1]), weight)
    norm_select_kernel[(rows,)](
        h, weight, keep if bracket is None else bracket, keep if limit is None else limit, z, keep, n, k, eps,
        SEARCH=limit is None, INTERPRETED=INTERPRETED, **arguments,
    )  # fmt: skip
    return z, keep


@_norm_select.register_fake
def _(
    h: Tensor,
    weight: Tensor,
    eps: float,
    k: int,
    strict: bool,
    bracket: Tensor | None,
    limit: Tensor | None,
    config: list[int],
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(h), h.new_empty((h.shape[0], 2), dtype=torch.int32)


def norm_select(
    h: Tensor,
    weight: Tensor,
    eps: float,
    k: int | None = None,
    ties: str = "strict",
    bracket: Tensor | None = None,
    limit: Tensor | None = None,
    backend: str = "auto",
    config: SearchConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """h: [B, D], weight: [D] -> (z [B, D] in h's dtype, keep [B, 2]).

    z = RMSNorm(h) * weight with transformers' roundings. keep: the k largest of z (None: all), or the calibrated pair
    `limit` [2] for every row, which needs no search. bracket: as in `select`.
    """
    triton = use_triton(backend, h)
    expect_vector("h", h, triton)
    expect("weight", weight, [h.shape[1]], [h.dtype], h.device)
    if k is not None and limit is not None:
        raise ValueError("k and limit: expected at most one of them")
    k = h.shape[1] if k is None else k
    check_k(k, h.shape[1])
    check_ties(ties)
    expect_pair("bracket", bracket, h.device)
    expect_pair("limit", limit, h.device)
    if not triton:
        return norm_select_reference(h, weight, eps, k, ties, limit)
    way = config or default_search(h.shape[1])
    numbers = [int(v) for v in dataclasses.astuple(way)]
    result: tuple[Tensor, Tensor] = _norm_select(h, weight, eps, k, ties == "strict", bracket, limit, numbers)
    return result
