"""The k-th largest by a histogram in shared memory: its text, run by warps in numpy, against a sort."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from larosa_kernels.ops.sparse_gemv_quantised.histogram import FOUND, WINDOW, cleared, counted, operands, room
from larosa_kernels.ops.sparse_gemv_quantised.product import plan
from ptx import SHARED, Block, run_block

INFINITY = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00}


def ranked(x: torch.Tensor, base: int, k: int, warps: int) -> list[int]:
    """What a program finds in x, equal in all threads: threshold, how many reach and exceed it, the largest."""
    halves = x.view(torch.int16).numpy().astype(np.int64) & 0xFFFF
    threads = 32 * warps
    words = (halves[0::2] | halves[1::2] << 16).reshape(-1, threads)
    given = {f"${len(words) + i}": each for i, each in enumerate(words)}
    wanted = f"${2 * len(words)}"
    text = " ".join([cleared(), counted(len(words), warps, x.dtype == torch.bfloat16), FOUND])
    block = Block(text, np.zeros(1, dtype=np.uint8), SHARED)
    given[wanted] = np.full(threads, base << 16 | k)
    found = run_block(block, warps, given, 2, ["$0", "$1", "$2", "$3"])
    assert all((each == each[0]).all() for each in found)
    assert operands(len(words)).count("r") == 3 * len(words)
    return [int(each[0]) for each in found]


def sorted_out(x: torch.Tensor, k: int) -> list[int]:
    bits = np.sort(x.view(torch.int16).numpy().astype(np.int64) & 0x7FFF)[::-1]
    threshold = bits[k - 1]
    return [int(threshold), int((bits >= threshold).sum()), int((bits > threshold).sum()), int(bits[0])]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("warps", [4, 16])
@pytest.mark.parametrize("k", [4, 300, 511, 900])
def test_a_threshold_in_the_window_is_that_of_a_sort(k: int, warps: int, dtype: torch.dtype) -> None:
    """Wherever in the window it lies: at both ends, in the middle; with infinities, NaN and zeros beside it."""
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(1024, generator=generator).to(dtype)
    x[5], x[6], x[7] = float("inf"), float("nan"), float("-inf")
    x[100:110] = 0.0
    expected = sorted_out(x, k)
    bases = [expected[0] - within for within in (0, 1, WINDOW // 2, WINDOW - 1)]
    assert all(1 <= base <= INFINITY[dtype] - WINDOW for base in bases)
    for base in bases:
        assert ranked(x, base, k, warps) == expected


def test_ties_are_counted_and_a_threshold_outside_is_left_to_the_search() -> None:
    """All alike: every entry reaches the threshold, none is above. One pattern beside the window: -1."""
    x = torch.full((256,), 1.5, dtype=torch.bfloat16)
    x[::2] *= -1
    bits = int(x.view(torch.int16)[1])
    assert ranked(x, bits - 3, 17, 4) == [bits, 256, 0, bits]
    for base in (bits + 1, bits - WINDOW):
        threshold, _, _, largest = ranked(x, base, 17, 4)
        assert threshold == 0xFFFFFFFF
        assert largest == bits


@pytest.mark.parametrize("warps", [4, 8, 16])
def test_the_counters_lie_where_copies_come_later(warps: int) -> None:
    """In front of a list in shared memory."""
    for most in (2, 4, 64):
        _, begin, all_of_it = plan(True, warps, most, 64)
        assert room(warps) <= (begin or all_of_it)
