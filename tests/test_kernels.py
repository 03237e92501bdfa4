"""Every kernel against its reference: in Triton's interpreter here, compiled on a GPU by the same command.

GPU, with no more than torch, triton, numpy and pytest:
`PYTHONPATH=kernels python -m pytest --noconftest -m "" tests/test_kernels*.py`.
The interpreter takes 0.1 s a search, so it runs fewer rows and widths.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from larosa_kernels import (
    bound_from_threshold,
    decode_attention,
    fused_sparse_gemv,
    rmsnorm_topk,
    selected_mask,
    sparse_gemv,
    swiglu_topk,
    topk_select,
)
from larosa_kernels.common import testing as kt
from larosa_kernels.common.gemv import GemvConfig
from larosa_kernels.common.search_config import SearchConfig, default_search
from larosa_kernels.common.selection import magnitude_bits
from larosa_kernels.ops.decode_attention.workspace import AttentionConfig
from larosa_kernels.ops.sparse_gemv.config import gemv_config
from larosa_kernels.ops.sparse_gemv.reference import sparse_gemv_reference
from larosa_kernels.ops.swiglu_topk.reference import swiglu_reference
from larosa_kernels.ops.topk_select.reference import topk_select_reference
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = [torch.bfloat16, torch.float16]
both = pytest.mark.parametrize("dtype", HALF, ids=["bf16", "fp16"])
ON_GPU = DEVICE == "cuda"
SEARCHES = [SearchConfig(num_warps=4), SearchConfig(num_warps=1)]
if ON_GPU:
    SEARCHES += [SearchConfig(packed=False), SearchConfig(), SearchConfig(num_warps=16)]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def pair(first: int, last: int) -> Tensor:
    return torch.tensor([first, last], dtype=torch.int32, device=DEVICE)


def check_selection(x: Tensor, k: int, strict: Tensor, loose: Tensor) -> None:
    """k entries, none of the dropped larger than any selected; of ties the lowest index, or all."""
    size = magnitude_bits(x)
    selected = selected_mask(x, strict)
    least_selected = torch.where(selected, size, 1 << 20).amin(1, keepdim=True)
    assert (selected.sum(1) == k).all()
    assert (torch.where(selected, -1, size).amax(1, keepdim=True) <= least_selected).all()
    assert torch.equal(selected_mask(x, loose), size >= least_selected)
    ties = size == least_selected
    assert ((selected & ties).int() >= (selected & ties).int().flip(1).cummax(1).values.flip(1) * ties.int()).all()


@both
@pytest.mark.parametrize("kind", kt.KINDS)
def test_topk_select_is_exact(kind: str, dtype: torch.dtype) -> None:
    n = 577
    x = kt.vector(kind, 3 if ON_GPU else 1, n, dtype, DEVICE)
    for k in (1, 2, 289, n - 1, n) if ON_GPU else (289, n):
        strict, loose = topk_select_reference(x, k, "strict"), topk_select_reference(x, k, "keep")
        check_selection(x, k, strict, loose)
        for config in SEARCHES if ON_GPU else SEARCHES[k % 2 :][:1]:
            with kt.poisoned_empty():
                assert torch.equal(topk_select(x, k, "strict", backend="triton", config=config), strict)
                if k < n and (ON_GPU or dtype == torch.bfloat16):  # which ties are selected has no dtype
                    assert torch.equal(topk_select(x, k, "keep", backend="triton", config=config), loose)


WIDTHS = [1, 2, 63, 64, 65, 1000, *([4096, 11008, 14336, 32768] if ON_GPU else [])]


@pytest.mark.parametrize(
    ("n", "dtype"), [(n, d) for i, n in enumerate(WIDTHS) for d in (HALF if ON_GPU else [HALF[i % 2]])], ids=str
)
def test_topk_select_at_odd_widths(n: int, dtype: torch.dtype) -> None:
    x = kt.vector("ties", 2, n, dtype, DEVICE, seed=n)
    for k in {1, n} if n < 65 else {1, n // 2} if n == 65 or ON_GPU else {n // 2}:
        assert torch.equal(topk_select(x, k, backend="triton"), topk_select_reference(x, k))


@pytest.mark.parametrize("config", SEARCHES, ids=str)
def test_a_search_range_changes_nothing(config: SearchConfig) -> None:
    x = kt.vector("normal", 1, 1000, torch.bfloat16, DEVICE)
    for k in (1, 500, 999) if ON_GPU else (500,):
        wanted = topk_select_reference(x, k)
        at = int(wanted[0, 0])
        around = [(at - 9, at + 9), (at, at), (at + 1, at + 40), (at - 40, at - 1), (at + 5, at - 5)]
        for search_range in [*around, (0, 0x7FFF), (-5, 0)]:
            assert torch.equal(topk_select(x, k, "strict", pair(*search_range), "triton", config), wanted), (
                k,
                search_range,
            )


def test_lowest_index_first_among_ties() -> None:
    x = kt.vector("equal", 1, 65, torch.bfloat16, DEVICE)
    for k in (1, 2, 33, 64):
        selected = selected_mask(x, topk_select(x, k, backend="triton"))
        assert selected[0, :k].all()
        assert not selected[0, k:].any()


@pytest.mark.parametrize("kind", ["equal", "ties", "normal"])
def test_ties_of_a_wide_vector_are_found_by_stretches(kind: str) -> None:
    n = 18944 if ON_GPU else 2100  # more than four stretches of the searching program's threads
    x = kt.vector(kind, 1, n, torch.bfloat16, DEVICE)
    for k in (1, n // 2, n - 1):
        for config in {default_search(n), SearchConfig(num_warps=1)}:
            assert torch.equal(topk_select(x, k, backend="triton", config=config), topk_select_reference(x, k)), (
                k,
                config,
            )


@both
def test_bound_from_threshold_is_strictly_greater(dtype: torch.dtype) -> None:
    x = kt.vector("normal", 1, 1000, dtype, DEVICE)
    for threshold in (0.0, 0.3, 0.5, float(x[0, 3].abs()), 1e-30, 5.0, 1e30):
        bound = bound_from_threshold(threshold, dtype, DEVICE)
        assert torch.equal(selected_mask(x, bound[None]), x.double().abs() > threshold)


@both
@pytest.mark.parametrize("kind", ["normal", "outliers", "zeros", "sorted"])
def test_rmsnorm_topk(kind: str, dtype: torch.dtype) -> None:
    n, k = 577, 240
    h, weight = kt.vector(kind, 2, n, dtype, DEVICE), 1 + normal(n, seed=1, dtype=dtype) / 4
    with kt.poisoned_empty():
        z, bound = rmsnorm_topk(h, weight, 1e-5, k, backend="triton")
    assert torch.equal(bound, topk_select_reference(z, k))
    wide = h.double()
    exact = wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + 1e-5) * weight.double()
    tiny = torch.finfo(dtype).smallest_normal * kt.EPSILON[dtype]
    assert ((z.double() - exact).abs() <= 2.02 * kt.EPSILON[dtype] * exact.abs() + 2 * tiny).all()  # two roundings
    reference, _ = rmsnorm_topk(h, weight, 1e-5, k, backend="reference")
    assert (z != reference).double().mean() < 0.01


@both
def test_rmsnorm_topk_with_a_threshold_or_nothing(dtype: torch.dtype) -> None:
    h, weight = normal(2, 1000, dtype=dtype), normal(1000, seed=1, dtype=dtype)
    threshold = bound_from_threshold(0.4, dtype, DEVICE)
    _, bound = rmsnorm_topk(h, weight, 1e-6, threshold=threshold, backend="triton")
    assert torch.equal(bound, threshold.repeat(2, 1))
    _, everything = rmsnorm_topk(h, weight, 1e-6, backend="triton")
    assert everything.tolist() == [[0, 1000]] * 2
    with pytest.raises(ValueError, match="at most one"):
        rmsnorm_topk(h, weight, 1e-6, k=3, threshold=threshold)


@both
@pytest.mark.parametrize("n", [577, 600])
def test_swiglu_topk(n: int, dtype: torch.dtype) -> None:
    k = 230
    gate_up = torch.cat([kt.vector("outliers", 3, n, dtype, "cpu") / 64, normal(3, n, seed=2, dtype=dtype).cpu()], 1)
    gate_up = (gate_up * 2).contiguous().to(DEVICE)
    with kt.poisoned_empty():
        h, bound = swiglu_topk(gate_up, k, backend="triton")
    assert torch.equal(bound, topk_select_reference(h, k))
    gate, up = gate_up.double().chunk(2, dim=1)
    exact = gate * torch.sigmoid(gate) * up
    tiny = torch.finfo(dtype).smallest_normal * kt.EPSILON[dtype]
    allowed = 2.02 * kt.EPSILON[dtype] * exact.abs() + 2 * tiny * (1 + up.abs())
    assert ((h.double() - exact).abs() <= allowed).all()
    assert (h != swiglu_reference(gate_up)).double().mean() < 0.01


@both
def test_swiglu_topk_with_thresholds(dtype: torch.dtype) -> None:
    gate_up = normal(2, 2000, dtype=dtype)
    threshold = bound_from_threshold(0.1, dtype, DEVICE)
    h, bound = swiglu_topk(gate_up, threshold=threshold, backend="triton")
    assert torch.equal(bound, threshold.repeat(2, 1))
    gated, bound = swiglu_topk(gate_up, gate_threshold=threshold, backend="triton")
    assert torch.equal(gated, swiglu_reference(gate_up, threshold))
    assert torch.equal(selected_mask(gated, bound), gated != 0)
    assert 0 < (gated == 0).double().mean() < 1
    assert torch.equal(h, swiglu_topk(gate_up, backend="triton")[0])


GEMV = {
    "default": GemvConfig(),
    "narrow": GemvConfig(columns=32, unroll=4, num_warps=4),
    "wide": GemvConfig(columns=256, unroll=2, num_warps=2),
    "one load": GemvConfig(columns=128, unroll=1, num_warps=1),
}


def both_ways(config: GemvConfig) -> list[GemvConfig]:
    """All rows under a mask, and a list of the selected."""
    return [dataclasses.replace(config, compact=compact) for compact in (False, True)]


def check_gemv(x: Tensor, bound: Tensor, weight: Tensor, config: GemvConfig | None, **more: Any) -> None:
    """Rows of dropped entries hold NaN, buffers hold NaN: the product is right all the same, on a GPU in equal bits."""
    selected = selected_mask(x, bound)
    exact = kt.exact_gemv(x, selected, weight, **more)
    if weight.dtype != torch.int8:
        weight = weight.clone()
        weight[~selected.any(0)] = float("nan")
    found = [sparse_gemv_reference(x, bound, weight, **more)]
    for way in both_ways(config or GemvConfig()):
        with kt.poisoned_empty():
            runs = [sparse_gemv(x, bound, weight, backend="triton", config=way, **more) for _ in range(1 + ON_GPU)]
        assert torch.equal(runs[0], runs[-1])
        found.append(runs[0])
    tolerance = kt.gemv_tolerance(x, torch.nan_to_num(weight), more.get("scale"))
    for y in found:
        assert ((y.double() - exact).abs() <= kt.EPSILON[x.dtype] * exact.abs() * 1.001 + tolerance).all()


@pytest.mark.parametrize(("config", "dtype"), list(zip(GEMV, HALF * 2, strict=True)), ids=str)
def test_sparse_gemv_shapes(config: str, dtype: torch.dtype) -> None:
    n, m = 577 if ON_GPU or GEMV[config].rows(2) > 2 else 69, 200  # two rows at a time take many rounds
    x, weight = kt.vector("sorted", 1, n, dtype, DEVICE), normal(n, m, seed=1, dtype=dtype)
    check_gemv(x, topk_select(x, n * 3 // 7), weight, GEMV[config], residual=normal(1, m, seed=2, dtype=dtype))


@pytest.mark.parametrize(("kind", "k"), [("ties", 7), ("equal", 599), ("half_zeros", 600), ("outliers", 1)])
def test_sparse_gemv_levels(kind: str, k: int) -> None:
    x, weight = kt.vector(kind, 1, 600, torch.bfloat16, DEVICE), normal(600, 100, seed=1)
    check_gemv(x, topk_select(x, k), weight, GemvConfig(columns=128))


def test_sparse_gemv_of_nothing_and_of_zeros() -> None:
    weight = normal(128, 64, seed=1)
    x = normal(1, 128)
    check_gemv(x, torch.tensor([[0x7F80, -1]], dtype=torch.int32, device=DEVICE), weight, None)
    gated = kt.vector("half_zeros", 1, 128, torch.bfloat16, DEVICE)
    check_gemv(gated, torch.tensor([[0, -1]], dtype=torch.int32, device=DEVICE), weight, None)


@both
def test_sparse_gemv_batch_bias_residual(dtype: torch.dtype) -> None:
    x, weight = kt.vector("ties", 3, 97, dtype, DEVICE), normal(97, 130, seed=1, dtype=dtype)
    more = {"bias": normal(130, seed=2, dtype=dtype), "residual": normal(3, 130, seed=3, dtype=dtype)}
    check_gemv(x, topk_select(x, 40), weight, GemvConfig(columns=64), **more)


def test_sparse_gemv_int8() -> None:
    weight = torch.randint(-128, 128, (97, 130), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    x = normal(1, 97)
    scale = (0.01 + normal(130, seed=1).float().abs()).contiguous()
    check_gemv(x, topk_select(x, 40), weight.to(DEVICE), GemvConfig(columns=64), scale=scale)


SITES: dict[str, dict[str, Any]] = {
    "norm": {"norm": True, "bias": True},
    "norm, all": {"norm": True, "k": None},
    "swiglu": {"norm": True, "swiglu": True, "bias": True},
    "swiglu, gated": {"norm": True, "swiglu": True, "gate_threshold": True},
    "residual": {"residual": True, "ties": "keep"},
    "threshold": {"k": None, "threshold": True, "residual": True},
    "nothing": {"k": None},
}


FUSED = [(n, dtype, c) for n, dtype in ((600, HALF[0]), (577, HALF[1])) for c in (True, False)]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(("n", "dtype", "compact"), FUSED if ON_GPU else FUSED[::3], ids=str)
def test_fused_sparse_gemv_has_the_bits_of_single_ops(n: int, dtype: torch.dtype, site: str, compact: bool) -> None:
    asked, rows = SITES[site], 1 + n % 2  # rows of odd width start between words
    m = 40 if "swiglu" in asked else 24  # a block of 16 outputs and half of one
    k, ties = asked.get("k", 251), asked.get("ties", "strict")
    x, weight = kt.vector("outliers", rows, n, dtype, DEVICE) / 30, normal(n, m, seed=1, dtype=dtype)
    norm = 1 + normal(n, seed=2, dtype=dtype) / 4 if "norm" in asked else None
    bias = normal(m, seed=3, dtype=dtype) if "bias" in asked else None
    residual = normal(rows, m, seed=4, dtype=dtype) if "residual" in asked else None
    pairs = {
        name: bound_from_threshold(0.05, dtype, DEVICE) if name in asked else None
        for name in ("threshold", "gate_threshold")
    }
    around: dict[str, Any] = {"bias": bias, "residual": residual}
    way = dataclasses.replace(gemv_config(n, m // 2 if "swiglu" in asked else m), compact=compact)
    with kt.poisoned_empty():
        y = fused_sparse_gemv(
            x, weight, k, ties, norm=norm, eps=1e-5, swiglu="swiglu" in asked, **pairs, **around, backend="triton",
            config=way,
        )  # fmt: skip
    how: dict[str, Any] = {"backend": "triton"}
    if norm is not None:
        z, bound = rmsnorm_topk(x, norm, 1e-5, k, ties, **how)
    else:
        z, bound = (
            x,
            pairs["threshold"].repeat(rows, 1)
            if pairs["threshold"] is not None
            else topk_select(x, k or n, ties, **how),
        )
    wanted = sparse_gemv(z, bound, weight, **around, **how, config=way)
    if "swiglu" in asked:
        wanted, _ = swiglu_topk(wanted, gate_threshold=pairs["gate_threshold"], **how)
    assert torch.equal(y, wanted)
    reference = fused_sparse_gemv(
        x, weight, k, ties, norm=norm, eps=1e-5, swiglu="swiglu" in asked, **pairs, **around, backend="reference"
    )
    assert (y.float() - reference.float()).norm() <= 8 * kt.EPSILON[dtype] * reference.float().norm()


def test_default_shapes_cover_any_width() -> None:
    for n, m in ((1, 1), (48, 80), (577, 33), (3584, 4608), (18944, 3584), (28672, 8192)):
        config = gemv_config(n, m)
        assert config.blocks(m) * config.columns >= m
        assert config.columns * config.rows(2) == 32 * config.num_warps * 8


ATTENTION = {
    "mha": (1, 1, AttentionConfig(splits=4, tile=16, num_warps=1)),
    "mha_one_split": (2, 1, AttentionConfig(splits=1, tile=8, num_warps=1)),
    "mha_many_lines": (1, 1, AttentionConfig(splits=8, tile=32, num_warps=8)),
    "mha_dot": (1, 1, AttentionConfig(splits=2, tile=16, num_warps=4, dot=True)),
    "gqa3": (2, 3, AttentionConfig(splits=2, tile=32, num_warps=2)),
    "gqa4": (2, 4, AttentionConfig(splits=4, tile=16, num_warps=4, dot=True)),
    "gqa7": (1, 7, AttentionConfig(splits=8, tile=16, num_warps=4, dot=True)),
    "gqa16": (1, 16, AttentionConfig(splits=2, tile=16, num_warps=4, dot=True)),
}


def check_attention(
    name: str,
    at: int,
    dtype: torch.dtype,
    width: int = 32,
    large: float = 1.0,
    one: bool = not ON_GPU,
    normed: bool = False,
) -> None:
    """Output and caches against the reference, the cache from `at` on being NaN.

    `large` scales the scores; `one`: one KV head of one row, for the interpreter runs a program after the other;
    `normed`: with norms of queries and keys.
    """
    kv, per, config = ATTENTION[name]
    longest, rows = 78, 2
    if one:
        kv, rows = 1, 1
    angle = torch.arange(longest)[:, None] * torch.logspace(0, -3, width // 2)[None, :]
    cos, sin = (torch.cat([f(angle)] * 2, 1).to(dtype).to(DEVICE).contiguous() for f in (torch.cos, torch.sin))
    qkv = normal(rows, (kv * per + 2 * kv) * width, dtype=dtype)
    qkv[:, : kv * per * width] *= large
    caches = [normal(rows, kv, longest, width, seed=s, dtype=dtype) for s in (1, 2)]
    for cache in caches:
        cache[:, :, at:] = float("nan")  # what is not yet written is not read
    other = [cache.clone() for cache in caches]
    position = torch.tensor([at], dtype=torch.int32, device=DEVICE)
    norms = {"norms": 0.5 + normal(2, width, seed=3, dtype=dtype).abs(), "eps": 1e-6} if normed else {}
    with kt.poisoned_empty():
        out = decode_attention(qkv, cos, sin, *caches, position, backend="triton", config=config, **norms)
    wanted = decode_attention(qkv, cos, sin, *other, position, backend="reference", **norms)
    for cache, reference in zip(caches, other, strict=True):
        if normed:  # the sum of squares has another order, which moves a rounding of four
            u = kt.EPSILON[dtype]
            torch.testing.assert_close(cache, reference, rtol=4 * u, atol=8 * u, equal_nan=True)
        else:
            assert torch.equal(cache.nan_to_num(7), reference.nan_to_num(7))
    # One rounding of the output, and with tensor cores one of the probabilities: each at most u times max |v|.
    # A score of size s is known to s times 2**-24 times its terms: so is its exponential, relatively.
    doubt = 3 * kt.EPSILON[dtype] + 2**-24 * width * large * width**0.5
    assert (out.float() - wanted.float()).abs().amax() <= doubt * other[1][:, :, : at + 1].float().abs().amax()


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize(("at", "dtype"), [(0, HALF[0]), (16, HALF[1]), (77, HALF[0])], ids=str)
def test_decode_attention(name: str, at: int, dtype: torch.dtype) -> None:
    check_attention(name, at, dtype, one=not ON_GPU and (at < 77 or ATTENTION[name][0] == 1))


@both
@pytest.mark.parametrize("name", ["mha", "mha_dot", "gqa3", "gqa7"])
def test_decode_attention_norms_queries_and_keys(name: str, dtype: torch.dtype) -> None:
    check_attention(name, 33, dtype, normed=True)


@pytest.mark.parametrize("wrong", [{"norms": torch.ones(32)}, {"norms": torch.ones(2, 32, dtype=torch.float64)}])
def test_norms_of_decode_attention_are_checked(wrong: dict[str, torch.Tensor]) -> None:
    qkv, table, cache = normal(1, 96), normal(40, 32, seed=1), normal(1, 1, 40, 32)
    with pytest.raises((ValueError, TypeError), match="norms"):
        decode_attention(qkv, table, table, cache, cache.clone(), torch.tensor([3], device=DEVICE), **wrong)


@pytest.mark.parametrize("at", [1, 3, 7, 8, 15, 31, 32, 33, 63, 64, 65])
@pytest.mark.parametrize("name", ["mha", "gqa4"])
def test_decode_attention_at_the_ends_of_splits_and_tiles(name: str, at: int) -> None:
    """Of 4 splits some have no position, or only the new one; tiles of 16 end before, at or after the stretch."""
    check_attention(name, at, HALF[0])


@both
@pytest.mark.parametrize("name", ["mha", "gqa4"])
def test_decode_attention_is_stable_over_scores_of_a_thousand(name: str, dtype: torch.dtype) -> None:
    check_attention(name, 70, dtype, large=400)


@pytest.mark.parametrize("width", [16, 64, 128, 256])
@pytest.mark.parametrize("name", ["mha", "gqa7"])
def test_decode_attention_at_other_head_widths(name: str, width: int) -> None:
    check_attention(name, 40, HALF[0], width)


def test_decode_attention_repeats_its_bits_and_resets_its_counters() -> None:
    kv, per = (2, 4) if ON_GPU else (1, 16)  # of the default launch shapes the latter has the fewest programs
    qkv, table = normal(1, kv * (per + 2) * 32), normal(40, 32, seed=1)
    caches = [normal(1, kv, 40, 32, seed=s) for s in (2, 3)]
    position = torch.tensor([37], device=DEVICE)
    with kt.poisoned_empty():
        runs = [
            decode_attention(qkv, table, table, *caches, position, backend="triton") for _ in range(20 if ON_GPU else 2)
        ]
    assert all(torch.equal(runs[0], run) for run in runs)
