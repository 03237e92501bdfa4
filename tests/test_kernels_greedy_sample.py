"""The end of a greedy step: argmax of any width, of ties, infinities and NaN, and what it writes besides."""

from __future__ import annotations

import pytest
import torch
from larosa_kernels import greedy_sample
from larosa_kernels.common import testing as kt
from larosa_kernels.ops.greedy_sample import api
from test_kernels import DEVICE, HALF, ON_GPU, both, normal
from torch import Tensor

BACKENDS = ["triton", "reference"]
WIDE = 128_256 if ON_GPU else 5000


def first_largest(logits: Tensor) -> list[int]:
    """By the definition: the first NaN, or else the first of the largest."""
    rows = logits.double().tolist()
    return [next((i for i, v in enumerate(row) if v != v), row.index(max(row))) for row in rows]


def sampled(logits: Tensor, backend: str, at: int = 5, length: int = 9) -> list[int]:
    """What `greedy_sample` chooses, all that it writes having been looked at."""
    rows = len(logits)
    token, tokens = torch.arange(70, 70 + rows, device=DEVICE), torch.full((rows + 1, length), -7, device=DEVICE)
    position, before = torch.tensor([at], device=DEVICE), logits.clone()
    with kt.poisoned_empty():
        greedy_sample(logits, token, tokens[:rows], position, backend=backend)
    wanted = torch.full_like(tokens, -7)
    wanted[:rows, at] = torch.arange(70, 70 + rows)
    assert torch.equal(tokens, wanted)
    assert position.tolist() == [at + 1]
    assert torch.equal(logits.view(torch.int16), before.view(torch.int16))
    return token.tolist()


@both
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n", [1, 2, 17, 384, 1023, 1024, 1025, 3001, WIDE, *([32_000, 262_147] if ON_GPU else [])])
def test_any_width(n: int, backend: str, dtype: torch.dtype) -> None:
    for rows in (1, 3):
        logits = normal(rows, n, seed=n, dtype=dtype)
        assert sampled(logits, backend) == first_largest(logits)
        assert sampled(-logits.abs() - 1, backend) == first_largest(-logits.abs() - 1)


@both
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("at", [0, 1, 1023, 1024, 1300, 3000])
def test_the_largest_is_found_wherever_it_lies(at: int, backend: str, dtype: torch.dtype) -> None:
    logits = torch.zeros(3, 3001, dtype=dtype, device=DEVICE)
    logits[1, at], logits[2] = 1e-6, -3.0
    logits[2, at] = -2.0
    assert sampled(logits, backend) == [0, at, at]


@both
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["ties", "equal", "zeros", "huge"])
def test_of_equals_the_first(kind: str, backend: str, dtype: torch.dtype) -> None:
    logits = kt.vector(kind, 3, 3001, dtype, DEVICE)
    assert sampled(logits, backend) == first_largest(logits)
    assert sampled(-logits, backend) == first_largest(-logits)  # of zeros, all negative ones


@both
@pytest.mark.parametrize("backend", BACKENDS)
def test_zeros_of_either_sign_are_equal(backend: str, dtype: torch.dtype) -> None:
    logits = torch.full((3, 2500), -0.0, dtype=dtype, device=DEVICE)
    logits[0, 1500:], logits[1, :2] = 0.0, -1.0
    logits[2, 0] = -torch.finfo(dtype).tiny
    assert sampled(logits, backend) == [0, 2, 1]


@both
@pytest.mark.parametrize("backend", BACKENDS)
def test_infinities_and_nan(backend: str, dtype: torch.dtype) -> None:
    nan, infinity = float("nan"), float("inf")
    logits = normal(6, 2500, dtype=dtype)
    logits[0, [1400, 2400]] = infinity
    logits[1] = -infinity
    logits[2], logits[2, 2100] = -infinity, torch.finfo(dtype).min
    logits[3, 100], logits[3, [1100, 1101, 2100]] = infinity, nan
    logits[4, 7] = infinity
    logits[4, 2499:].view(torch.int16).fill_(-1)  # a negative NaN
    logits[5] = nan
    assert sampled(logits, backend) == [1400, 0, 2100, 1100, 2499, 0]


def test_it_repeats_and_resets_its_counter() -> None:
    logits = normal(3, 3001)
    assert all(sampled(logits, "triton", at) == first_largest(logits) for at in range(3))
    assert int(api._workspace(3, 3, logits.device)[1]) == 0


def test_nothing_is_written_behind_the_history() -> None:
    logits, memory = normal(1, 100), torch.full((6,), -7, device=DEVICE)
    token, position = torch.tensor([3], device=DEVICE), torch.tensor([4], device=DEVICE)
    greedy_sample(logits, token, memory[None, :4], position, backend="triton")
    assert memory.tolist() == [-7] * 6
    assert (token.tolist(), position.tolist()) == (first_largest(logits), [5])


def test_refusals_say_expected_and_got() -> None:
    logits, token, tokens = normal(2, 64), torch.zeros(2).long().to(DEVICE), torch.zeros(2, 4).long().to(DEVICE)
    position = token[:1].clone()
    with pytest.raises(TypeError, match="float32"):
        greedy_sample(logits.float(), token, tokens, position, backend="triton")
    with pytest.raises(ValueError, match="contiguous"):
        greedy_sample(logits.t(), tokens[0], tokens.repeat(32, 1), position)
    with pytest.raises(ValueError, match=r"token: expected shape \[2\], got \[1\]"):
        greedy_sample(logits, token[:1], tokens, position)
    with pytest.raises(ValueError, match=r"tokens: expected shape \[2, 4\], got \[3, 4\]"):
        greedy_sample(logits, token, torch.zeros(3, 4, device=DEVICE).long(), position)
    with pytest.raises(TypeError, match="position: expected dtype"):
        greedy_sample(logits, token, tokens, position.int())


def test_the_reference_takes_fp32() -> None:
    logits = normal(2, 300, dtype=HALF[0]).float().cpu()
    logits[1, 250] = logits.max() + 1e-6
    token, tokens, position = torch.tensor([4, 5]), torch.zeros(2, 3).long(), torch.tensor([2])
    greedy_sample(logits, token, tokens, position)
    assert token.tolist() == first_largest(logits)
    assert tokens.tolist() == [[0, 0, 4], [0, 0, 5]]
