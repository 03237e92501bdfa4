"""The product over a list of selected rows: selection at its edges, for every kind of weight.

GPU: `PYTHONPATH=kernels python -m pytest --noconftest -m "" tests/test_kernels_compaction.py`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from larosa_kernels import bound_from_threshold, fused_sparse_gemv, sparse_gemv, topk_select
from larosa_kernels.common import testing as kt
from larosa_kernels.common.gemv import GemvConfig
from larosa_kernels.common.selection import selected_mask
from larosa_kernels.ops.sparse_gemv import api
from larosa_kernels.ops.sparse_gemv.config import launch_config
from larosa_kernels.ops.sparse_gemv_quantised.packing import dequantise, pack_qweight, pack_scales
from larosa_kernels.ops.topk_select.reference import topk_select_reference
from test_kernels import DEVICE, GEMV, HALF, check_gemv, normal, pair
from torch import Tensor

ON_GPU = DEVICE == "cuda"
LISTED = GemvConfig(columns=64, unroll=2, num_warps=4, compact=True)
WEIGHTS = ("half", "int8", "packed")


def weight_of(
    kind: str, n: int, m: int, dtype: torch.dtype, paired: bool = False
) -> tuple[Tensor, dict[str, Any], Tensor]:
    """A weight of a kind, what goes with it, and its values as float32."""
    draw = torch.Generator().manual_seed(n)
    if kind == "half":
        weight = normal(n, m, seed=1, dtype=dtype)
        return weight, {}, weight.float()
    if kind == "int8":
        weight = torch.randint(-128, 128, (n, m), generator=draw, dtype=torch.int8).to(DEVICE)
        scale = ((0.5 + torch.rand(m, generator=draw)) / 256).to(DEVICE)
        return weight, {"scale": scale}, weight.float() * scale
    weight = pack_qweight(torch.randint(-8, 8, (n, m), generator=draw, dtype=torch.int8).to(DEVICE), paired)
    scale = pack_scales((torch.randn(-(-m // 64), n, generator=draw) / 16).bfloat16().to(DEVICE), m, paired)
    return weight, {"scale": scale, "out_features": m, "paired": paired}, dequantise(weight, scale, m, paired)


def check_pair(x: Tensor, bound: Tensor, kind: str, m: int = 72, config: GemvConfig = LISTED) -> None:
    """`sparse_gemv` over a list against float64."""
    weight, around, values = weight_of(kind, x.shape[1], m, x.dtype)
    exact = kt.exact_gemv(x, selected_mask(x, bound), values)
    with kt.poisoned_empty():
        y = sparse_gemv(x, bound, weight, backend="triton", config=config, **around)
    allowed = kt.EPSILON[x.dtype] * exact.abs() * 1.001 + 2 * kt.gemv_tolerance(x, values)
    assert ((y.double() - exact).abs() <= allowed).all()


def pairs(*each: tuple[int, int]) -> Tensor:
    return torch.tensor(each, dtype=torch.int32, device=DEVICE)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_nothing_one_all_and_batch(kind: str) -> None:
    x = torch.cat([normal(3, 129), kt.vector("half_zeros", 1, 129, torch.bfloat16, DEVICE)])
    x[1, 128] = 3000.0
    above = int(torch.tensor(2000.0, dtype=torch.bfloat16).view(torch.int16))
    check_pair(x, pairs((0x7F80, -1), (above, -1), (0, 129), (0, -1)), kind)


@pytest.mark.parametrize("dtype", HALF, ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    ("n", "kind"),
    [(n, kind) for n in (1, 2, 63, 65, 577) for kind in WEIGHTS if ON_GPU or (kind == "half") == (n < 65)],
)
def test_odd_widths(n: int, kind: str, dtype: torch.dtype) -> None:
    x = kt.vector("ties", 1, n, dtype, DEVICE, seed=n)
    check_pair(x, topk_select_reference(x, max(1, n // 2)), kind, m=33)


@pytest.mark.parametrize("kind", ["ties", "equal", "half_zeros", "zeros", "outliers", "sorted"])
@pytest.mark.parametrize("ties", ["strict", "keep"])
def test_search_lists_what_the_reference_selects(kind: str, ties: str) -> None:
    """Weight rows of what is dropped, and of zeros, hold NaN: reading one shows."""
    n = 600
    x = kt.vector(kind, 1, n, torch.bfloat16, DEVICE)
    for k in (1, 299, 599) if ON_GPU or kind in ("ties", "half_zeros") else (299,):
        selected = selected_mask(x, topk_select_reference(x, k, ties)) & (x != 0)
        weight = normal(n, 40, seed=1)
        exact = kt.exact_gemv(x, selected, weight)
        weight = torch.where(selected.T, weight, float("nan"))
        with kt.poisoned_empty():
            y = fused_sparse_gemv(x, weight, k, ties, backend="triton", config=LISTED)
        tolerance = kt.gemv_tolerance(x, torch.nan_to_num(weight))
        assert ((y.double() - exact).abs() <= kt.EPSILON[x.dtype] * exact.abs() * 1.001 + tolerance).all()


@pytest.mark.parametrize(
    ("kind", "dtype"), [(w, d) for i, w in enumerate(WEIGHTS) for d in (HALF if ON_GPU else [HALF[i % 2]])], ids=str
)
def test_a_chosen_list_is_a_given_one(kind: str, dtype: torch.dtype) -> None:
    """Search, gate and up, and two rows of x in one launch have the bits of the single ops."""
    n, m, k = 202, 128, 95
    x = normal(2, n, dtype=dtype)
    weight, around, _ = weight_of(kind, n, m, dtype, paired=kind == "packed")
    bound = topk_select(x, k, backend="triton")
    for columns in (64, 32) if ON_GPU else (32,):
        way = dataclasses.replace(LISTED, columns=columns)
        with kt.poisoned_empty():
            y = fused_sparse_gemv(x, weight, k, backend="triton", config=way, **around)
            gated = fused_sparse_gemv(x, weight, k, swiglu=True, backend="triton", config=way, **around)
        both = sparse_gemv(x, bound, weight, backend="triton", config=way, **around)
        assert torch.equal(y, both)
        gate, up = both.float().chunk(2, 1)
        wanted = (gate * torch.sigmoid(gate)).to(dtype).float() * up
        assert (gated.float() - wanted).norm() <= 2 * kt.EPSILON[dtype] * wanted.norm()


def test_thresholds_below_every_entry_leave_zeros_out() -> None:
    x = kt.vector("half_zeros", 1, 200, torch.bfloat16, DEVICE)
    weight = normal(200, 64, seed=1)
    exact = kt.exact_gemv(x, x != 0, weight)
    weight = torch.where((x != 0).T, weight, float("nan"))
    for threshold in (pair(0, 200), pair(-1, -1), bound_from_threshold(0.0, x.dtype, DEVICE)):
        y = fused_sparse_gemv(x, weight, threshold=threshold, backend="triton", config=LISTED)
        assert ((y.double() - exact).abs() <= 0.01 * exact.abs() + kt.gemv_tolerance(x, torch.nan_to_num(weight))).all()


@pytest.mark.parametrize("config", GEMV)
def test_wide_vectors_take_every_launch_shape(config: str) -> None:
    """Turns of the program's threads come in one, two and more, and lists end in the middle of one."""
    n = 14336 if ON_GPU else 1200
    if not ON_GPU and GEMV[config].rows(2) <= 2:
        n = 130
    x = kt.vector("normal", 1, n, torch.bfloat16, DEVICE)
    check_gemv(x, topk_select(x, n // 2 + 1), normal(n, 40, seed=1), GEMV[config])


@pytest.mark.parametrize("rule", [{"k": 40}, {"threshold": (200, -1)}], ids=["search", "threshold"])
@pytest.mark.parametrize("broken", ["nan", "zeros"])
def test_padding_that_becomes_nan_is_not_listed(
    rule: dict[str, Any], broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """144 entries in a block of 256: behind a norm without a finite scale, nothing behind the scratch changes."""
    x, made = normal(1, 144), []
    x[0, 3 if broken == "nan" else slice(None)] = float("nan") if broken == "nan" else 0.0
    plain = torch.empty

    def guarded(*size: Any, **how: Any) -> Tensor:
        if how.get("dtype") != torch.int32:
            return plain(*size, **how)
        shape = size[0] if isinstance(size[0], tuple) else size
        made.append(plain(math.prod(shape) + 256, **how).fill_(-7))
        return made[-1][:-256].view(shape)

    monkeypatch.setattr(torch, "empty", guarded)
    given = {name: pair(*own) if name == "threshold" else own for name, own in rule.items()}
    config = GemvConfig(32, 2, 1, compact=True)
    fused_sparse_gemv(x, normal(144, 32, seed=1), norm=normal(144, seed=2), backend="triton", config=config, **given)
    assert made
    assert all((scratch[-256:] == -7).all() for scratch in made)


@pytest.mark.parametrize(("entries", "k"), [(["inf", "nan"], 1), (["inf", "inf", "nan"], 2), (["nan", "inf"], 1)])
def test_nan_is_selected_whatever_is_infinite(entries: list[str], k: int) -> None:
    x = torch.zeros(1, 64, dtype=torch.bfloat16, device=DEVICE)
    x[0, 5 : 5 + len(entries)] = torch.tensor([float(own) for own in entries])
    weight = torch.ones(64, 32, dtype=torch.bfloat16, device=DEVICE)
    assert fused_sparse_gemv(x, weight, k, backend="triton", config=LISTED).isnan().all()
    assert sparse_gemv(x, topk_select(x, k), weight, backend="triton", config=LISTED).isnan().all()


def test_half_precision_lists_the_few() -> None:
    for dtype in HALF:
        for n in (4096, 14336):
            weight = torch.empty(n, 2048, dtype=dtype, device="meta")
            found = [launch_config(4096, weight, selected).compact for selected in (None, int(0.45 * n), n // 2, n)]
            assert found == [False, True, False, False]
    config = dataclasses.replace(LISTED, unroll=4)
    assert GemvConfig.from_list(config.as_list()) == config


def test_a_launch_takes_the_shape_of_what_is_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Top-K, a threshold, and everything; the single product behind them has only a mask to go by."""
    asked: list[int | None] = []
    monkeypatch.setattr(api, "launch_config", lambda *given: (asked.append(given[-1]), LISTED)[1])
    x, weight = normal(1, 64), normal(64, 32, seed=1)
    for k in (20, None):
        fused_sparse_gemv(x, weight, k, backend="triton")
    fused_sparse_gemv(x, weight, threshold=bound_from_threshold(0.5, x.dtype, DEVICE), backend="triton")
    sparse_gemv(x, topk_select(x, 20), weight, backend="triton")
    assert asked == [20, 64, None, None]


@pytest.mark.parametrize("kind", ["ties", "equal"])
def test_ties_in_many_turns_of_one_warp(kind: str) -> None:
    """More than 16 turns a warp: their sets come in several words."""
    n = 1300
    x = kt.vector(kind, 1, n, torch.bfloat16, DEVICE)
    config = GemvConfig(columns=32, unroll=4, num_warps=1, compact=True)
    weight = normal(n, 32, seed=1)
    for k in (1, 700, 1299) if ON_GPU else (700,) if kind == "ties" else (1, 1299):
        bound = topk_select(x, k, backend="triton")
        assert torch.equal(bound, topk_select_reference(x, k))
        y = fused_sparse_gemv(x, weight, k, backend="triton", config=config)
        assert torch.equal(y, sparse_gemv(x, bound, weight, backend="triton", config=config))
        exact = kt.exact_gemv(x, selected_mask(x, bound), weight)
        tolerance = kt.gemv_tolerance(x, weight)
        assert ((y.double() - exact).abs() <= kt.EPSILON[x.dtype] * exact.abs() * 1.001 + tolerance).all()
