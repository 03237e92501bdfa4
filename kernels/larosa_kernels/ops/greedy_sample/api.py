"""The end of a greedy decode step in one launch: argmax, history and position."""

from __future__ import annotations

from functools import cache

import torch
import triton
from torch import Tensor

from larosa_kernels.common.checks import INFINITY_BITS, expect, expect_vector, refuse_first_use_in_capture, use_triton
from larosa_kernels.ops.greedy_sample.kernel import greedy_sample_kernel
from larosa_kernels.ops.greedy_sample.reference import greedy_sample_reference

_BLOCK, _WARPS = 1024, 4  # 16 bytes per thread; 128k logits make a program per multiprocessor


@cache
def _workspace(rows: int, parts: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Keys [B, parts] and a counter [1] at zero, int32: shared by all calls on the device's one stream."""
    refuse_first_use_in_capture("greedy_sample")
    keys = torch.empty(rows, parts, dtype=torch.int32, device=device)
    return keys, torch.zeros(1, dtype=torch.int32, device=device)


@torch.library.custom_op("larosa::greedy_sample", mutates_args=("token", "tokens", "position"))
def _greedy_sample(logits: Tensor, token: Tensor, tokens: Tensor, position: Tensor) -> None:
    rows, n = logits.shape
    parts = triton.cdiv(n, _BLOCK)
    keys, counter = _workspace(rows, parts, logits.device)
    greedy_sample_kernel[(parts, rows)](
        logits, token, tokens, position, keys, counter, n, tokens.shape[1],
        INFINITY=INFINITY_BITS[logits.dtype], BLOCK=_BLOCK, PARTS=triton.next_power_of_2(parts), num_warps=_WARPS,
    )  # fmt: skip


@_greedy_sample.register_fake
def _(logits: Tensor, token: Tensor, tokens: Tensor, position: Tensor) -> None:
    return None


def greedy_sample(logits: Tensor, token: Tensor, tokens: Tensor, position: Tensor, backend: str = "auto") -> None:
    """Write token [B] to the history tokens [B, L] at `position` [1], add 1 to it, then set token to the argmax.

    logits: [B, V] bf16 or fp16 (the reference takes fp32 too). As torch.argmax: of equal logits the first, NaN counts
    as the largest. token, tokens, position: int64, written in place; position is below L.
    Raises ValueError or TypeError that names the argument, what was expected and what was given.
    """
    triton_runs = use_triton(backend, logits)
    expect_vector("logits", logits, triton_runs)
    for name, tensor, shape in (
        ("token", token, [len(logits)]),
        ("tokens", tokens, [len(logits), tokens.shape[-1]]),
        ("position", position, [1]),
    ):
        expect(name, tensor, shape, [torch.int64], logits.device)
    if triton_runs:
        _greedy_sample(logits, token, tokens, position)
    else:
        greedy_sample_reference(logits, token, tokens, position)
