"""RMSNorm and the selection of its largest outputs in one launch."""

from __future__ import annotations

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
from larosa_kernels.ops.rmsnorm_topk.kernel import rmsnorm_topk_kernel
from larosa_kernels.ops.rmsnorm_topk.reference import rmsnorm_topk_reference


@torch.library.custom_op("larosa::rmsnorm_topk", mutates_args=())
def _rmsnorm_topk(
    h: Tensor,
    weight: Tensor,
    eps: float,
    k: int,
    strict: bool,
    search_range: Tensor | None,
    threshold: Tensor | None,
    config: list[int],
) -> tuple[Tensor, Tensor]:
    rows, n = h.shape
    z = torch.empty_like(h)
    bound = torch.empty(rows, 2, dtype=torch.int32, device=h.device)
    arguments = search_arguments(h, strict, search_range is not None, config[0], bool(config[1]), weight)
    rmsnorm_topk_kernel[(rows,)](
        h, weight, bound if search_range is None else search_range, bound if threshold is None else threshold,
        z, bound, n, k, eps, SEARCH=threshold is None, INTERPRETED=INTERPRETED, **arguments,
    )  # fmt: skip
    return z, bound


@_rmsnorm_topk.register_fake
def _(h: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(h), h.new_empty((h.shape[0], 2), dtype=torch.int32)


def rmsnorm_topk(
    h: Tensor,
    weight: Tensor,
    eps: float,
    k: int | None = None,
    ties: str = "strict",
    search_range: Tensor | None = None,
    threshold: Tensor | None = None,
    backend: str = "auto",
    config: SearchConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """z = RMSNorm(h) * weight with transformers' roundings, and the selection bound of z.

    h: [B, D], weight: [D] -> (z [B, D] in h's dtype, bound [B, 2]). The bound is that of the k largest of z (None: of
    all), or for every row the calibrated bound `threshold` [2] (`bound_from_threshold`), which needs no search.
    ties, search_range: as in `topk_select`. Raises ValueError or TypeError that names the argument.
    """
    triton = use_triton(backend, h)
    expect_vector("h", h, triton)
    expect("weight", weight, [h.shape[1]], [h.dtype], h.device)
    if k is not None and threshold is not None:
        raise ValueError("k and threshold: expected at most one of them")
    k = h.shape[1] if k is None else k
    check_k(k, h.shape[1])
    check_ties(ties)
    expect_pair("search_range", search_range, h.device)
    expect_pair("threshold", threshold, h.device)
    if not triton:
        return rmsnorm_topk_reference(h, weight, eps, k, ties, threshold)
    config = config or default_search(h.shape[1])
    result: tuple[Tensor, Tensor] = _rmsnorm_topk(
        h, weight, eps, k, ties == "strict", search_range, threshold, config.as_list()
    )
    return result
