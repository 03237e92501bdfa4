"""SwiGLU and the selection of its largest outputs in one launch."""

from __future__ import annotations

import dataclasses

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
from larosa_kernels.ops.swiglu_topk.kernel import swiglu_select_kernel
from larosa_kernels.ops.swiglu_topk.reference import swiglu_select_reference


@torch.library.custom_op("larosa::swiglu_select", mutates_args=())
def _swiglu_select(
    gate_up: Tensor,
    k: int,
    strict: bool,
    bracket: Tensor | None,
    limit: Tensor | None,
    gate_limit: Tensor | None,
    config: list[int],
) -> tuple[Tensor, Tensor]:
    rows, n = gate_up.shape[0], gate_up.shape[1] // 2
    h = torch.empty(rows, n, dtype=gate_up.dtype, device=gate_up.device)
    keep = torch.empty(rows, 2, dtype=torch.int32, device=gate_up.device)
    arguments = search_arguments(h, strict, bracket is not None, config[0], bool(config[1]), gate_up)
    swiglu_select_kernel[(rows,)](
        gate_up, keep if bracket is None else bracket, keep if limit is None else limit,
        keep if gate_limit is None else gate_limit, h, keep, n, k,
        SEARCH=limit is None and gate_limit is None, GATED=gate_limit is not None, INTERPRETED=INTERPRETED, **arguments,
    )  # fmt: skip
    return h, keep


@_swiglu_select.register_fake
def _(
    gate_up: Tensor,
    k: int,
    strict: bool,
    bracket: Tensor | None,
    limit: Tensor | None,
    gate_limit: Tensor | None,
    config: list[int],
) -> tuple[Tensor, Tensor]:
    rows, n = gate_up.shape[0], gate_up.shape[1] // 2
    return gate_up.new_empty((rows, n)), gate_up.new_empty((rows, 2), dtype=torch.int32)


def swiglu_select(
    gate_up: Tensor,
    k: int | None = None,
    ties: str = "strict",
    bracket: Tensor | None = None,
    limit: Tensor | None = None,
    gate_limit: Tensor | None = None,
    backend: str = "auto",
    config: SearchConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """gate_up: [B, 2 I], gates first -> (h [B, I], keep [B, 2]), h = silu(gate) * up with transformers' roundings.

    keep: the k largest of h (None: all); or the calibrated pair `limit` [2]; or, by `gate_limit` [2] (CATS), entries
    whose |silu(gate)| passes that pair: the others are written as zeros and keep is (0, -1), all that is not zero.
    """
    triton = use_triton(backend, gate_up)
    expect_vector("gate_up", gate_up, triton)
    if gate_up.shape[1] % 2:
        raise ValueError(f"gate_up: expected an even width (gates, then ups), got {gate_up.shape[1]}")
    if sum(option is not None for option in (k, limit, gate_limit)) > 1:
        raise ValueError("k, limit and gate_limit: expected at most one of them")
    n = gate_up.shape[1] // 2
    k = n if k is None else k
    check_k(k, n)
    check_ties(ties)
    for name, pair in (("bracket", bracket), ("limit", limit), ("gate_limit", gate_limit)):
        expect_pair(name, pair, gate_up.device)
    if not triton:
        return swiglu_select_reference(gate_up, k, ties, limit, gate_limit)
    numbers = [int(v) for v in dataclasses.astuple(config or default_search(n))]
    result: tuple[Tensor, Tensor] = _swiglu_select(gate_up, k, ties == "strict", bracket, limit, gate_limit, numbers)
    return result
