"""SwiGLU and the selection of its largest outputs in one launch."""

from __future__ import annotations

import torch
from torch import Tensor

from larosa_kernels.common.checks import (
    INTERPRETED,
    check_k,
    check_ties,
    expect_pair,
    expect_vector,
    use_triton,
)
from larosa_kernels.common.search_config import SearchConfig, default_search, search_arguments
from larosa_kernels.ops.swiglu_topk.kernel import swiglu_topk_kernel
from larosa_kernels.ops.swiglu_topk.reference import swiglu_topk_reference


@torch.library.custom_op("larosa::swiglu_topk", mutates_args=())
def _swiglu_topk(
    gate_up: Tensor,
    k: int,
    strict: bool,
    search_range: Tensor | None,
    threshold: Tensor | None,
    gate_threshold: Tensor | None,
    config: list[int],
) -> tuple[Tensor, Tensor]:
    rows, n = gate_up.shape[0], gate_up.shape[1] // 2
    h = torch.empty(rows, n, dtype=gate_up.dtype, device=gate_up.device)
    bound = torch.empty(rows, 2, dtype=torch.int32, device=gate_up.device)
    arguments = search_arguments(h, strict, search_range is not None, config[0], bool(config[1]), gate_up)
    swiglu_topk_kernel[(rows,)](
        gate_up, bound if search_range is None else search_range, bound if threshold is None else threshold,
        bound if gate_threshold is None else gate_threshold, h, bound, n, k,
        SEARCH=threshold is None and gate_threshold is None, GATED=gate_threshold is not None,
        INTERPRETED=INTERPRETED, **arguments,
    )  # fmt: skip
    return h, bound


@_swiglu_topk.register_fake
def _(gate_up: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    rows, n = gate_up.shape[0], gate_up.shape[1] // 2
    return gate_up.new_empty((rows, n)), gate_up.new_empty((rows, 2), dtype=torch.int32)


def swiglu_topk(
    gate_up: Tensor,
    k: int | None = None,
    ties: str = "strict",
    search_range: Tensor | None = None,
    threshold: Tensor | None = None,
    gate_threshold: Tensor | None = None,
    backend: str = "auto",
    config: SearchConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """h = silu(gate) * up with transformers' roundings, and the selection bound of h.

    gate_up: [B, 2 I], gates first -> (h [B, I], bound [B, 2]). The bound is that of the k largest of h (None: of all);
    or the calibrated bound `threshold` [2]; or, by `gate_threshold` [2] (CATS), entries whose |silu(gate)| it does not
    select are written as zeros and the bound is (0, -1), which selects whatever is not zero.
    ties, search_range: as in `topk_select`. Raises ValueError or TypeError that names the argument.
    """
    triton = use_triton(backend, gate_up)
    expect_vector("gate_up", gate_up, triton)
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up: expected an even width (gates, then ups), got {gate_up.shape[1]}")
    if sum(option is not None for option in (k, threshold, gate_threshold)) > 1:
        raise ValueError("k, threshold and gate_threshold: expected at most one of them")
    n = gate_up.shape[1] // 2
    k = n if k is None else k
    check_k(k, n)
    check_ties(ties)
    for name, pair in (
        ("search_range", search_range), ("threshold", threshold), ("gate_threshold", gate_threshold)
    ):  # fmt: skip
        expect_pair(name, pair, gate_up.device)
    if not triton:
        return swiglu_topk_reference(gate_up, k, ties, threshold, gate_threshold)
    config = config or default_search(n)
    result: tuple[Tensor, Tensor] = _swiglu_topk(
        gate_up, k, ties == "strict", search_range, threshold, gate_threshold, config.as_list()
    )
    return result
