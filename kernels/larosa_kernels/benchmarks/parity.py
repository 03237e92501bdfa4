"""The parity check before any timing: every kernel against its reference at the shapes to be timed."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from larosa_kernels import (
    decode_attention,
    fused_sparse_gemv,
    greedy_sample,
    rmsnorm_topk,
    selected_mask,
    sparse_gemv,
    swiglu_topk,
    topk_select,
)
from larosa_kernels.benchmarks.rows import Recorder
from larosa_kernels.benchmarks.shapes import CONTEXT, EPS, HEAD_WIDTH, HEADS, PROJECTIONS, WIDTHS
from larosa_kernels.common import testing
from larosa_kernels.common.gemv import GemvConfig
from larosa_kernels.common.search_config import SearchConfig
from larosa_kernels.ops.sparse_gemv.config import launch_config
from larosa_kernels.ops.topk_select.reference import topk_select_reference

VOCABULARIES = (32_000, 128_256, 152_064)


def range_around(bound: Tensor, width: int) -> Tensor:
    """A calibrated range of `width` patterns around the threshold, off centre."""
    low = bound[0, 0] - width // 3
    return torch.stack([low, low + width - 1]).int()


def parity_errors(recorder: Recorder, searches: dict[int, list[SearchConfig]]) -> list[str]:
    """What is wrong, one line each; `searches`: the launch shapes of searches that will be timed, by width."""
    failed = []
    for n in sorted({n for widths in WIDTHS.values() for n in widths}):
        x = testing.vector("sorted", 1, n, recorder.dtype, "cuda")
        for k, ties in itertools.product((n // 4, n // 2, n - 1), ("strict", "keep")):
            wanted = topk_select_reference(x, k, ties)
            for search_range in (None, range_around(wanted, 64), range_around(wanted + 200, 64)):
                for config in searches[n]:
                    if not torch.equal(topk_select(x, k, ties, search_range, config=config), wanted):
                        failed.append(f"topk_select n={n} k={k} {ties} {config}")
        gate_up, h, gamma = recorder.normal(1, 2 * n), recorder.normal(1, n), recorder.normal(n)
        y, bound = swiglu_topk(gate_up, n // 2)
        near = (y != swiglu_topk(gate_up, backend="reference")[0]).double().mean() < 0.01
        if not near or not torch.equal(bound, topk_select_reference(y, n // 2)):
            failed.append(f"swiglu_topk n={n}")
        z, bound = rmsnorm_topk(h, gamma, EPS, n // 2)
        near = (z != rmsnorm_topk(h, gamma, EPS, backend="reference")[0]).double().mean() < 0.01
        if not near or not torch.equal(bound, topk_select_reference(z, n // 2)):
            failed.append(f"rmsnorm_topk n={n}")
    for n, m in sorted(set(PROJECTIONS.values())):
        x, weight = recorder.normal(1, n), recorder.normal(n, m)
        for k in (n // 4, n // 2, n):
            failed += gemv_errors(x, weight, k, launch_config(m, weight, k)) + site_errors(recorder, x, weight, k)
    failed += [f"greedy_sample n={n}" for n in VOCABULARIES if not greedy_sample_is_right(recorder, n)]
    return failed + [f"decode_attention {model}" for model in HEADS if not attention_is_right(recorder, model)]


def gemv_errors(x: Tensor, weight: Tensor, k: int, config: GemvConfig) -> list[str]:
    """Empty, or what is wrong: the float64 product on few columns, dropped rows being NaN, equal bits on repetition."""
    bound = topk_select(x, k)
    selected = selected_mask(x, bound)
    poisoned = weight.clone()
    poisoned[~selected[0]] = float("nan")
    y = sparse_gemv(x, bound, poisoned, config=config)
    some = slice(None, None, 37)
    exact = testing.exact_gemv(x, selected, weight[:, some])
    allowed = testing.EPSILON[x.dtype] * exact.abs() * 1.001 + testing.gemv_tolerance(x, weight[:, some])
    right = bool(((y[:, some].double() - exact).abs() <= allowed).all())
    same = all(torch.equal(y, sparse_gemv(x, bound, poisoned, config=config)) for _ in range(5))
    return [] if right and same else [f"sparse_gemv {list(weight.shape)} k={k} {config}: right {right}, repeats {same}"]


def site_errors(recorder: Recorder, x: Tensor, weight: Tensor, k: int) -> list[str]:
    """Empty, or where one launch a site has other bits than the single ops, which are held against float64."""
    n, m = weight.shape
    gamma, residual = recorder.normal(n), recorder.normal(1, m)
    z, bound = rmsnorm_topk(x, gamma, EPS, k)
    half, whole = (launch_config(outputs, weight, k) for outputs in (m // 2, m))
    single = {
        "residual": sparse_gemv(x, topk_select(x, k), weight, residual=residual, config=whole),
        "norm": sparse_gemv(z, bound, weight, config=whole),
        "swiglu": swiglu_topk(sparse_gemv(z, bound, weight, config=half))[0],
    }
    fused = {
        "residual": fused_sparse_gemv(x, weight, k, residual=residual, config=whole),
        "norm": fused_sparse_gemv(x, weight, k, norm=gamma, eps=EPS, config=whole),
        "swiglu": fused_sparse_gemv(x, weight, k, norm=gamma, eps=EPS, swiglu=True, config=half),
    }
    wrong = [name for name in single if not torch.equal(single[name], fused[name])]
    return [f"fused_sparse_gemv {[n, m]} k={k}: {name} has other bits than the single ops" for name in wrong]


def attention_inputs(recorder: Recorder, model: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(qkv, cos, sin, k_cache, v_cache, position) at the end of a full context."""
    kv, per = HEADS[model]
    angle = torch.rand(CONTEXT, HEAD_WIDTH // 2, device="cuda").repeat(1, 2)
    caches = [recorder.normal(1, kv, CONTEXT, HEAD_WIDTH) for _ in range(2)]
    position = torch.tensor([CONTEXT - 1], dtype=torch.int32, device="cuda")
    qkv = recorder.normal(1, kv * (per + 2) * HEAD_WIDTH)
    return qkv, angle.cos().to(recorder.dtype), angle.sin().to(recorder.dtype), caches[0], caches[1], position


def attention_is_right(recorder: Recorder, model: str) -> bool:
    """Output and caches against the reference."""
    qkv, cos, sin, k, v, position = attention_inputs(recorder, model)
    k2, v2 = k.clone(), v.clone()
    out = decode_attention(qkv, cos, sin, k, v, position)
    wanted = decode_attention(qkv, cos, sin, k2, v2, position, backend="reference")
    near = (out.float() - wanted.float()).abs().max() <= 3 * testing.EPSILON[recorder.dtype] * v2.abs().max()
    return bool(near) and torch.equal(k, k2) and torch.equal(v, v2)


def greedy_sample_is_right(recorder: Recorder, n: int) -> bool:
    """Of normal and of many equal logits, ten steps' tokens, history and position against the reference."""
    sizes = ((1,), (1, 11), (1,))  # token, tokens, position
    sampled, wanted = ([torch.zeros(s, dtype=torch.int64, device="cuda") for s in sizes] for _ in range(2))
    for step in range(10):
        logits = testing.vector("ties" if step % 2 else "normal", 1, n, recorder.dtype, "cuda", seed=step)
        for state, backend in ((sampled, "auto"), (wanted, "reference")):
            token, tokens, position = state
            greedy_sample(logits, token, tokens, position, backend=backend)
        if not all(torch.equal(a, b) for a, b in zip(sampled, wanted, strict=True)):
            return False
    return True
