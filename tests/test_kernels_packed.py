"""The sparse product of packed 4-bit weights against its reference: in the interpreter here, compiled on a GPU.

GPU: `PYTHONPATH=kernels python -m pytest --noconftest -m "" tests/test_kernels_packed.py`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from larosa_kernels import (
    bound_from_threshold,
    fused_sparse_gemv,
    rmsnorm_topk,
    selected_mask,
    sparse_gemv,
    swiglu_topk,
    topk_select,
)
from larosa_kernels.common import testing as kt
from larosa_kernels.common.gemv import GemvConfig
from larosa_kernels.ops.sparse_gemv.reference import sparse_gemv_reference
from larosa_kernels.ops.sparse_gemv_quantised import launch
from larosa_kernels.ops.sparse_gemv_quantised.config import quantised_config
from larosa_kernels.ops.sparse_gemv_quantised.packing import dequantise, pack_qweight, pack_scales, unpack_qweight
from larosa_kernels.ops.sparse_gemv_quantised.reference import integer_gemv_reference
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ON_GPU = DEVICE == "cuda"
HALF = [torch.bfloat16, torch.float16]
WAYS: dict[str, Any] = {
    "default": None,
    "8 warps": GemvConfig(unroll=2, num_warps=8),
    "split": GemvConfig(unroll=4, num_warps=16, splits=2),
    "many splits": GemvConfig(unroll=2, num_warps=4, splits=7),
}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def packed(n: int, m: int, seed: int = 0, paired: bool = False) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    qweight = torch.randint(-8, 8, (n, m), generator=draw, dtype=torch.int8)
    scale = (torch.randn(-(-m // 64), n, generator=draw) / 16).bfloat16()
    return pack_qweight(qweight.to(DEVICE), paired), pack_scales(scale.to(DEVICE), m, paired)


def check(
    x: Tensor, bound: Tensor, weight: Tensor, scale: Tensor, m: int, config: GemvConfig | None, **more: Any
) -> None:
    """Scales of dropped entries are NaN and their weights differ: the product is right, in equal bits each time."""
    selected, dense = selected_mask(x, bound), dequantise(weight, scale, m)
    exact = kt.exact_gemv(x, selected, dense, **more)
    poisoned, other = scale.clone(), weight.clone()
    poisoned[:, ~selected.any(0)] = float("nan")
    other[~selected.any(0)] = 0xFF
    around = {"scale": poisoned, "out_features": m, "max_scale": float(scale.abs().max()), **more}
    with kt.poisoned_empty():
        runs = [sparse_gemv(x, bound, other, backend="triton", config=config, **around) for _ in range(1 + ON_GPU)]
    assert torch.equal(runs[0], runs[-1])
    found = [sparse_gemv_reference(x, bound, other, scale=poisoned, out_features=m, **more), runs[0]]
    allowed = kt.EPSILON[x.dtype] * exact.abs() * 1.001 + 2 * kt.gemv_tolerance(x, dense)
    for y in found:
        assert ((y.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize(
    ("m", "paired"), [(1, False), (63, False), (256, False), (300, False), (128, True), (640, True)]
)
def test_packing_is_undone(m: int, paired: bool) -> None:
    draw = torch.Generator().manual_seed(m)
    qweight = torch.randint(-8, 8, (5, m), generator=draw, dtype=torch.int8)
    scale = torch.randn(-(-m // 64), 5, generator=draw).bfloat16()
    found, scales = pack_qweight(qweight, paired), pack_scales(scale, m, paired)
    blocks = -(-m // 2 // 128) if paired else -(-m // 256)
    assert found.shape == (5, 128 * blocks)
    assert scales.shape == (blocks, 5, 4)
    assert torch.equal(unpack_qweight(found, m, paired), qweight)
    wanted = qweight.float() * scale.float().repeat_interleave(64, 0)[:m].T
    assert torch.equal(dequantise(found, scales, m, paired), wanted)


def test_what_cannot_be_packed_is_refused() -> None:
    qweight = torch.full((5, 64), 8, dtype=torch.int8)
    with pytest.raises(ValueError, match="-8 to 7"):
        pack_qweight(qweight)
    with pytest.raises(ValueError, match="int8"):
        pack_qweight(qweight.int())
    with pytest.raises(ValueError, match="whole groups of 64"):
        pack_qweight(qweight - 8, paired=True)
    with pytest.raises(ValueError, match=r"expected \[2, n\]"):
        pack_scales(torch.ones(1, 5), 100)


def test_words_of_a_group_are_shared_out_among_lanes() -> None:
    """The layout of packing.py's docstring, place by place."""
    qweight = torch.randint(-8, 8, (1, 256), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    words = pack_qweight(qweight).view(torch.int32)[0]
    for output in range(256):
        c, g, j = output // 64, output % 64 // 8, output % 8
        assert ((int(words[4 * g + c]) >> (4 * j)) & 15) - 8 == qweight[0, output]


@pytest.mark.parametrize(("name", "dtype"), list(zip(WAYS, HALF * 2, strict=True)), ids=str)
def test_launch_shapes(name: str, dtype: torch.dtype) -> None:
    n, m = (577, 300) if ON_GPU else (201, 300)
    x, (weight, scale) = kt.vector("sorted", 1, n, dtype, DEVICE), packed(n, m)
    check(x, topk_select(x, n * 3 // 7), weight, scale, m, WAYS[name], residual=normal(1, m, seed=2, dtype=dtype))


@pytest.mark.parametrize("m", [1, 63, 65, 130])
def test_odd_widths_batch_bias(m: int) -> None:
    x, (weight, scale) = normal(2, 97), packed(97, m, seed=m)
    check(x, topk_select(x, 40), weight, scale, m, WAYS["split"], bias=normal(m, seed=3))


def test_everything_and_nothing_selected() -> None:
    x, (weight, scale) = normal(1, 128), packed(128, 70)
    check(x, topk_select(x, 128), weight, scale, 70, WAYS["many splits"])
    check(x, torch.tensor([[0x7F80, -1]], dtype=torch.int32, device=DEVICE), weight, scale, 70, WAYS["many splits"])


SITES: dict[str, dict[str, Any]] = {
    "norm": {"norm": True, "bias": True},
    "norm, all": {"norm": True, "k": None},
    "swiglu": {"norm": True, "swiglu": True, "bias": True},
    "swiglu, gated": {"swiglu": True, "gate_threshold": True},
    "residual": {"residual": True, "ties": "keep"},
    "threshold": {"k": None, "threshold": True, "residual": True},
    "nothing": {"k": None},
}


# A program takes the interpreter 0.3 s, so there every site has one launch shape, and every shape a site or two.
LAUNCHED = {
    "norm": "split", "norm, all": "default", "swiglu": "8 warps", "swiglu, gated": "split", "residual": "many splits",
    "threshold": "8 warps", "nothing": "many splits",
}  # fmt: skip


@pytest.mark.parametrize(("site", "way"), [(s, w) for s in SITES for w in WAYS] if ON_GPU else LAUNCHED.items())
@pytest.mark.parametrize(("n", "dtype"), [(600, HALF[0]), (577, HALF[1])] if ON_GPU else [(161, HALF[0])], ids=str)
def test_one_launch_a_site_has_the_bits_of_single_ops(n: int, dtype: torch.dtype, site: str, way: str) -> None:
    """Whatever the launch shape, for integer sums are exact."""
    asked = SITES[site]
    m = 384 if "swiglu" in asked else 72
    paired = "swiglu" in asked
    k, ties, (weight, scale) = asked.get("k", n * 3 // 7), asked.get("ties", "strict"), packed(n, m, paired=paired)
    x = kt.vector("outliers", 1, n, dtype, DEVICE) / 30  # an odd width is read entry by entry
    norm = 1 + normal(n, seed=2, dtype=dtype) / 4 if "norm" in asked else None
    thresholds = {
        name: bound_from_threshold(0.05, dtype, DEVICE) for name in ("threshold", "gate_threshold") if name in asked
    }
    around: dict[str, Any] = {"scale": scale, "out_features": m, "paired": paired}
    around |= {"bias": normal(m, seed=3, dtype=dtype)} if "bias" in asked else {}
    around |= {"residual": normal(1, m, seed=4, dtype=dtype)} if "residual" in asked else {}
    more: dict[str, Any] = {"norm": norm, "eps": 1e-5, "swiglu": "swiglu" in asked, **thresholds, **around}
    with kt.poisoned_empty():
        y = fused_sparse_gemv(x, weight, k, ties, **more, backend="triton", config=WAYS[way])
    if norm is not None:
        z, bound = rmsnorm_topk(x, norm, 1e-5, k, ties, backend="triton")
    else:
        z, bound = (
            x,
            thresholds["threshold"][None]
            if "threshold" in thresholds
            else topk_select(x, k or n, ties, backend="triton"),
        )
    wanted = sparse_gemv(z, bound, weight, **around, backend="triton")
    if "swiglu" in asked:
        wanted, _ = swiglu_topk(wanted, gate_threshold=thresholds.get("gate_threshold"), backend="triton")
    assert torch.equal(y, wanted)
    reference = fused_sparse_gemv(x, weight, k, ties, **more, backend="reference")
    assert (y.float() - reference.float()).norm() <= 8 * kt.EPSILON[dtype] * reference.float().norm()


def test_what_does_not_fit_is_named() -> None:
    x, (weight, scale) = normal(1, 64), packed(64, 128)
    bound = topk_select(x, 32)
    with pytest.raises(ValueError, match="out_features goes with"):
        sparse_gemv(x, bound, weight, scale=scale)
    with pytest.raises(ValueError, match="out_features goes with"):
        sparse_gemv(x, bound, normal(64, 128), out_features=128)
    with pytest.raises(ValueError, match="scale goes with"):
        sparse_gemv(x, bound, weight, out_features=128)
    with pytest.raises(ValueError, match=r"expected shape \[64, 256\]"):
        sparse_gemv(x, bound, weight, scale=scale, out_features=257)
    with pytest.raises(TypeError, match="bfloat16"):
        sparse_gemv(x, bound, weight, scale=scale.float(), out_features=128)
    with pytest.raises(ValueError, match="that is paired"):
        fused_sparse_gemv(x, weight, scale=scale, out_features=128, swiglu=True)
    with pytest.raises(ValueError, match="groups of 64"):
        sparse_gemv(x, bound, weight, scale=scale, out_features=100, paired=True)


@pytest.mark.parametrize("n", [4096, 3584, 14336, 18944])
@pytest.mark.parametrize("row_bytes", [2048, 3072, 6144, 11008, 14336, 22016, 128256])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8], ids=str)
def test_default_shapes_fill_132_multiprocessors(dtype: torch.dtype, row_bytes: int, n: int) -> None:
    config = quantised_config(n, dtype, row_bytes)
    programs = -(-row_bytes // 128) * config.splits
    assert programs >= 100
    assert config.splits == 1 or (programs <= 264 and n / config.splits >= 256)


@pytest.mark.parametrize("kind", ["ties", "equal"])
@pytest.mark.parametrize("ties", ["strict", "keep"])
@pytest.mark.parametrize("bits", [4, 8])
def test_ties_are_selected_in_order_by_programs_that_share_rows(bits: int, ties: str, kind: str) -> None:
    """Those in front of a program's rows take up room: any number of splits keeps what the reference keeps.

    The interpreter, 0.3 s a program and row, takes three programs: the last selected tie is with the first, the middle
    or the last one.
    """
    n, m = 257, 64
    x = kt.vector(kind, 2 if ON_GPU else 1, n, torch.bfloat16, DEVICE)
    weight, scale = packed(n, m)
    around: dict[str, Any] = {"scale": scale, "out_features": m}
    if bits == 8:
        qweight = torch.randint(-127, 128, (n, m), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
        weight, around = qweight.to(DEVICE), {"scale": torch.full((m,), 0.01, device=DEVICE)}
    for k in (40, 120, 200) if ON_GPU else (40, 200) if kind == "equal" else (120,):
        wanted = fused_sparse_gemv(x, weight, k, ties, backend="reference", **around).float()
        found = [
            fused_sparse_gemv(
                x, weight, k, ties, backend="triton", config=GemvConfig(unroll=2, num_warps=4, splits=s), **around
            )
            for s in ((1, 7) if ON_GPU else (1, 3))
        ]
        assert all(torch.equal(found[0], other) for other in found[1:])
        assert (found[0].float() - wanted).norm() <= kt.EPSILON[x.dtype] * wanted.norm()


@pytest.mark.parametrize("ties", ["strict", "keep"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("n", [254, 1000, 4096] if ON_GPU else [254])
def test_a_search_range_changes_no_bit(n: int, dtype: torch.dtype, ties: str) -> None:
    """One that holds the threshold, at its ends too, one that does not, and one far too wide."""
    x, (weight, scale) = normal(2, n, seed=n, dtype=dtype), packed(n, 64)
    x[1, ::7] = x[1, 0]  # ties
    x[1, 3::11] = 0.0
    chosen, rows = [(n // 2, 1), (n // 3, 3), (n - 2, 1)], list(x)
    if not ON_GPU:  # 0.3 s a program: each case takes another of them
        chosen, rows = [chosen[(2 * HALF.index(dtype) + (ties == "keep")) % 3]], rows[1:]
    for k, splits in chosen:
        way = GemvConfig(unroll=4, num_warps=4, splits=splits)
        more: dict[str, Any] = {"scale": scale, "out_features": 64, "backend": "triton", "config": way}
        for row in rows:
            wanted = fused_sparse_gemv(row[None], weight, k, ties, **more)
            threshold = int(topk_select(row[None], k)[0, 0])
            for low, high in (
                (threshold - 5, threshold + 5),
                (threshold, threshold + 9),
                (threshold - 9, threshold),
                (9, 9),
                (0, 0x7000),
            ):
                search_range = torch.tensor([max(0, low), max(0, high)], dtype=torch.int32, device=DEVICE)
                assert torch.equal(
                    fused_sparse_gemv(row[None], weight, k, ties, search_range=search_range, **more), wanted
                )


def test_many_rows_are_not_split_and_small_scales_are_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, grids = launch.sparse_gemv_quantised_kernel, []

    class Watched:
        def __getitem__(self, grid: tuple[int, int]) -> Any:
            grids.append(grid)
            return kernel[grid]

    monkeypatch.setattr(launch, "sparse_gemv_quantised_kernel", Watched())
    if not ON_GPU:  # 264 programs take the interpreter a minute
        monkeypatch.setattr(launch, "_MAX_PROGRAMS", 4)
    x, (weight, scale) = normal(270 if ON_GPU else 5, 64), packed(64, 64)
    bound = topk_select(x, 32)
    wanted = sparse_gemv(x, bound, weight, scale=scale, out_features=64, backend="reference").float()
    way = GemvConfig(unroll=2, num_warps=4, splits=2)
    found = sparse_gemv(x, bound, weight, scale=scale, out_features=64, backend="triton", config=way).float()
    assert (found - wanted).norm() <= kt.EPSILON[x.dtype] * wanted.norm()
    zeros = sparse_gemv(x[:1], bound[:1], weight, scale=scale * 0, out_features=64, backend="triton", config=way)
    assert (zeros == 0).all()
    assert grids == [(1, len(x)), (2, 1)]
    with pytest.raises(ValueError, match="finite"):
        sparse_gemv(x[:1], bound[:1], weight, scale=scale, out_features=64, max_scale=float("nan"), backend="triton")


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("kind", ["w4", "w4 paired", "w8"])
def test_a_product_has_the_bits_of_the_integer_reference(kind: str, dtype: torch.dtype) -> None:
    """Fixed point, integer sums, one rounding: README's formulas, on any launch shape, NaN and infinity included."""
    n, m, paired = 161, 128, kind == "w4 paired"
    x = torch.cat([kt.vector(each, 1, n, dtype, "cpu") / 8 for each in ("normal", "outliers", "zeros", "normal")])
    x[3, 7] = float("inf") if paired else float("nan")
    x = x.to(DEVICE)
    bound = topk_select(x, 70)
    if kind == "w8":
        draw = torch.Generator().manual_seed(2)
        weight = torch.randint(-128, 128, (n, m), generator=draw, dtype=torch.int8).to(DEVICE)
        scale, max_scale = ((0.5 + torch.rand(m, generator=draw)) / 256).to(DEVICE), 1.0
        around: dict[str, Any] = {"scale": scale}
    else:
        weight, scale = packed(n, m, paired=paired)
        max_scale = float(scale.abs().max())
        around = {"scale": scale, "out_features": m, "max_scale": max_scale, "paired": paired}
    wanted = integer_gemv_reference(x, bound, weight, scale, m, max_scale, paired)
    assert wanted[3].isnan().all()
    for config in (None, GemvConfig(unroll=2, num_warps=4, splits=3)):
        y = sparse_gemv(x, bound, weight, backend="triton", config=config, **around)
        assert torch.equal(y[:3], wanted[:3])
        assert y[3].isnan().all()
