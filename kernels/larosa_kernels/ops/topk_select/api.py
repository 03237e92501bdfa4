"""Top-K over each row of a matrix, as a selection bound (common/selection.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from larosa_kernels.common.checks import check_k, check_ties, expect_pair, expect_vector, use_triton
from larosa_kernels.common.search_config import SearchConfig, default_search, search_arguments
from larosa_kernels.ops.topk_select.kernel import topk_select_kernel
from larosa_kernels.ops.topk_select.reference import topk_select_reference


@torch.library.custom_op("larosa::topk_select", mutates_args=())
def _topk_select(x: Tensor, k: int, strict: bool, search_range: Tensor | None, config: list[int]) -> Tensor:
    rows, n = x.shape
    bound = torch.empty(rows, 2, dtype=torch.int32, device=x.device)
    arguments = search_arguments(x, strict, search_range is not None, config[0], bool(config[1]))
    topk_select_kernel[(rows,)](x, search_range if search_range is not None else bound, bound, n, k, **arguments)
    return bound


@_topk_select.register_fake
def _(x: Tensor, k: int, strict: bool, search_range: Tensor | None, config: list[int]) -> Tensor:
    return x.new_empty((x.shape[0], 2), dtype=torch.int32)


def topk_select(
    x: Tensor,
    k: int,
    ties: str = "strict",
    search_range: Tensor | None = None,
    backend: str = "auto",
    config: SearchConfig | None = None,
) -> Tensor:
    """Select the k largest magnitudes of each row, exactly.

    x: [B, n] bf16 or fp16 (the reference takes fp32 too); returns the bound [B, 2] int32.
    ties: of entries equal to the k-th, `strict` selects the lowest indices until k are selected, `keep` selects all.
    search_range: [2] int32, magnitude bits (low, high) to search first; the result does not depend on it.
    Raises ValueError or TypeError that names the argument, what was expected and what was given.
    """
    triton = use_triton(backend, x)
    expect_vector("x", x, triton)
    check_k(k, x.shape[1])
    check_ties(ties)
    expect_pair("search_range", search_range, x.device)
    if not triton:
        return topk_select_reference(x, k, ties)
    config = config or default_search(x.shape[1])
    bound: Tensor = _topk_select(x, k, ties == "strict", search_range, config.as_list())
    return bound
