"""The sums of a tile's columns, alone: every output from its own column, in one order.

GPU: `PYTHONPATH=kernels python -m pytest --noconftest -m "" tests/test_kernels_sums.py`.
"""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from larosa_kernels.ops.sparse_gemv.sums import sum_both_columns, sum_columns
from test_kernels import DEVICE, normal
from torch import Tensor

SHAPES = [
    (32, 64, 32, 2),  # 4-bit weights, gate and up
    (64, 32, 32, 2),
    (128, 16, 32, 2),  # a row shorter than a load
    (16, 64, 16, 2),  # int8
    (8, 128, 8, 4),  # bf16
    (64, 16, 8, 4),  # more lanes a column than columns a thread
    (64, 8, 8, 2),
    (256, 4, 16, 2),
    (512, 1, 16, 1),
    (2, 64, 32, 4),
    (1, 64, 32, 4),
    (2, 8, 32, 4),
    (1, 8, 8, 1),
    (4, 512, 8, 8),
]
"""Rows, columns, columns that a thread holds, warps."""


@triton.jit
def sums_kernel(x, x_up, y, ROWS: tl.constexpr, COLUMNS: tl.constexpr, HELD: tl.constexpr):
    column = tl.arange(0, COLUMNS)
    at = tl.arange(0, ROWS)[:, None] * COLUMNS + column[None, :]
    total, total_up = tl.load(x + at).to(tl.float32), tl.load(x_up + at).to(tl.float32)
    out, up = sum_both_columns(total, total_up, HELD)
    tl.store(y + column, sum_columns(total, HELD))
    tl.store(y + COLUMNS + column, out)
    tl.store(y + 2 * COLUMNS + column, up)


def sums(x: Tensor, x_up: Tensor, held: int, warps: int) -> Tensor:
    """Of x alone, of x and of x_up together: [3, columns]."""
    y = torch.full((3, x.shape[1]), float("nan"), device=DEVICE)
    sums_kernel[(1,)](x, x_up, y, *x.shape, held, num_warps=warps)
    return y


@pytest.mark.parametrize(("rows", "columns", "held", "warps"), SHAPES)
def test_exact_where_every_order_is(rows: int, columns: int, held: int, warps: int) -> None:
    draw = torch.Generator().manual_seed(rows + columns)
    x, x_up = torch.randint(-128, 129, (2, rows, columns), generator=draw).bfloat16().to(DEVICE)
    wanted = torch.stack([x.float().sum(0), x.float().sum(0), x_up.float().sum(0)])
    assert torch.equal(sums(x, x_up, held, warps), wanted)


@pytest.mark.parametrize(("rows", "columns", "held", "warps"), SHAPES)
def test_within_rounding_and_the_same_again(rows: int, columns: int, held: int, warps: int) -> None:
    x, x_up = normal(rows, columns, seed=1), normal(rows, columns, seed=2)
    found = sums(x, x_up, held, warps)
    wanted = torch.stack([x.double().sum(0), x.double().sum(0), x_up.double().sum(0)])
    reach = torch.stack([x.double().abs().sum(0), x.double().abs().sum(0), x_up.double().abs().sum(0)])
    assert ((found.double() - wanted).abs() <= rows * 2.0**-24 * reach).all()
    assert torch.equal(found, sums(x, x_up, held, warps))


def test_nan_stays_in_its_column() -> None:
    x, ones = torch.ones(2, 32, 64, dtype=torch.bfloat16, device=DEVICE)
    x[5, 3], x[16, 10], x[31, 63] = float("nan"), float("inf"), float("-inf")
    wanted = torch.full((3, 64), 32.0, device=DEVICE)
    wanted[:2, [3, 10, 63]] = torch.tensor([float("nan"), float("inf"), float("-inf")], device=DEVICE)
    torch.testing.assert_close(sums(x, ones, 32, 2), wanted, rtol=0, atol=0, equal_nan=True)


def test_the_order_of_neighbouring_rows() -> None:
    """A large entry and its negative, three rows apart, swallow what is added between them."""
    x = torch.zeros(32, 64, dtype=torch.bfloat16, device=DEVICE)
    x[0], x[1], x[2], x[3] = 2.0**30, 1.0, 1.0, -(2.0**30)
    assert (sums(x, x, 32, 2) == 0).all()
    x[1], x[3] = -(2.0**30), 1.0
    assert (sums(x, x, 32, 2) == 2).all()
