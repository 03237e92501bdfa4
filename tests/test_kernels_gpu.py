"""What only a GPU can show: graph replays, torch.compile, equal bits under real concurrency, model widths.

With no more than torch, triton, numpy and pytest:
`PYTHONPATH=kernels python -m pytest --noconftest -m gpu tests/test_kernels_gpu.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from larosa_kernels import (
    decode_attention,
    fused_sparse_gemv,
    greedy_sample,
    rmsnorm_topk,
    sparse_gemv,
    swiglu_topk,
    topk_select,
)
from larosa_kernels.common import testing as kt
from larosa_kernels.common.gemv import GemvConfig
from larosa_kernels.common.search_config import SearchConfig
from larosa_kernels.ops.sparse_gemv.launch import one
from larosa_kernels.ops.sparse_gemv_quantised.launch import partial_sums
from test_kernels import DEVICE, HALF, ON_GPU, check_gemv, normal
from torch import Tensor

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not ON_GPU, reason="needs a CUDA GPU")]


def gpu_layer() -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Two selections, two products and an attention at LLaMA's widths, scaled down in depth."""
    gamma, up, down = normal(4096, seed=1), normal(4096, 2 * 4096, seed=2) / 64, normal(4096, 4096, seed=3) / 64
    cache = [torch.zeros(1, 8, 64, 128, dtype=torch.bfloat16, device=DEVICE) for _ in range(2)]
    table, position = normal(64, 128, seed=4), torch.tensor([5], device=DEVICE)

    def layer(h: Tensor) -> tuple[Tensor, Tensor]:
        z, bound = rmsnorm_topk(h, gamma, 1e-5, 2048)
        hidden, bound_hidden = swiglu_topk(
            sparse_gemv(z, bound, up),
            2048,
        )
        out = sparse_gemv(hidden, bound_hidden, down, residual=h)
        fused = fused_sparse_gemv(h, up, 2048, norm=gamma, eps=1e-5, swiglu=True)
        out = out + fused_sparse_gemv(fused, down, 2048, residual=h)
        return out, decode_attention(torch.cat([out, out[:, :2048]], dim=1), table, table, cache[0], cache[1], position)

    return layer


def test_graph_replays_give_the_bits_of_eager_calls() -> None:
    layer, inputs = gpu_layer(), [normal(1, 4096, seed=s) for s in range(5)]
    wanted = [layer(h) for h in inputs]
    static = inputs[0].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = layer(static)
    for h, outputs in list(zip(inputs, wanted, strict=True)) * 10:
        static.copy_(h)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(found, outputs, strict=True))


@pytest.mark.parametrize("made", [one, partial_sums], ids=["one", "partial_sums"])
def test_capture_before_the_first_call_is_refused(made: Any) -> None:
    x, weight = normal(1, 320), normal(320, 96)
    more = {} if made is one else {"scale": torch.ones(96, device=DEVICE)}
    bound = topk_select(x, 160)
    made.cache_clear()
    with pytest.raises(RuntimeError, match="run it once"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        sparse_gemv(x, bound, weight.to(torch.int8) if more else weight, **more)


@pytest.mark.parametrize("n", [4096, 3584, 576])
def test_a_norm_has_the_same_bits_with_any_warps_and_with_a_list(n: int) -> None:
    gamma, weight = normal(n, seed=1), normal(n, 256, seed=2) / 64
    for seed in range(20):
        h = kt.vector("outliers", 1, n, torch.bfloat16, DEVICE) * (1 + seed)
        z, bound = rmsnorm_topk(h, gamma, 1e-5, n // 2)
        assert all(torch.equal(z, rmsnorm_topk(h, gamma, 1e-5, n // 2, config=SearchConfig(w))[0]) for w in (4, 16))
        for config in (GemvConfig(64, 4, warps, compact) for warps in (4, 8, 16) for compact in (True, False)):
            single = sparse_gemv(z, bound, weight, config=config)
            assert torch.equal(fused_sparse_gemv(h, weight, n // 2, norm=gamma, eps=1e-5, config=config), single)


def test_compiled_layer_gives_the_same_bits() -> None:
    layer, h = gpu_layer(), normal(1, 4096)
    wanted = layer(h)
    found = torch.compile(layer, fullgraph=True)(h)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("shape", [(4096, 12288), (11008, 4096), (14336, 4096), (4096, 28672)], ids=str)
def test_sparse_gemv_at_model_widths(shape: tuple[int, int]) -> None:
    n, m = shape
    x, weight = kt.vector("sorted", 1, n, torch.bfloat16, DEVICE), normal(n, m, seed=1)
    for k in (n // 4, n // 2, n):
        bound = topk_select(x, k)
        check_gemv(x, bound, weight, None)
        first = sparse_gemv(x, bound, weight)
        assert all(torch.equal(first, sparse_gemv(x, bound, weight)) for _ in range(20))


@pytest.mark.parametrize("at", [0, 1023, 4095])
@pytest.mark.parametrize("heads", [(32, 1), (8, 4), (4, 7)], ids=str)
def test_decode_attention_at_model_widths(heads: tuple[int, int], at: int) -> None:
    kv, per = heads
    table = normal(at + 1, 128, seed=1)
    caches = [normal(1, kv, at + 1, 128, seed=s) for s in (2, 3)]
    other = [cache.clone() for cache in caches]
    position, qkv = torch.tensor([at], device=DEVICE), normal(1, kv * (per + 2) * 128)
    out = decode_attention(qkv, table, table, *caches, position)
    wanted = decode_attention(qkv, table, table, *other, position, backend="reference")
    assert all(torch.equal(a, b) for a, b in zip(caches, other, strict=True))
    assert (out.float() - wanted.float()).abs().amax() <= 3 * kt.EPSILON[out.dtype] * other[1].float().abs().amax()
    assert all(torch.equal(out, decode_attention(qkv, table, table, *caches, position)) for _ in range(20))


@pytest.mark.parametrize("dtype", HALF, ids=["bf16", "fp16"])
@pytest.mark.parametrize(("rows", "n"), [(1, 32_000), (1, 128_256), (3, 151_936), (3, 262_147)], ids=str)
def test_replays_of_greedy_sample_go_on_where_the_last_one_ended(rows: int, n: int, dtype: torch.dtype) -> None:
    steps = [kt.vector("ties", rows, n, dtype, DEVICE, seed=s) for s in range(8)] * 25
    token, tokens, position = (torch.zeros(s, device=DEVICE).long() for s in (rows, (rows, len(steps) + 1), 1))
    static = steps[0].clone()
    greedy_sample(static, token, tokens, position)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        greedy_sample(static, token, tokens, position)
    token.fill_(-7)
    position.zero_()
    for logits in steps:
        static.copy_(logits)
        graph.replay()
    wanted = torch.stack([logits.double().argmax(-1) for logits in steps], 1)
    assert position.tolist() == [len(steps)]
    assert (tokens[:, 0] == -7).all()
    assert torch.equal(tokens[:, 1:-1], wanted[:, :-1])
    assert torch.equal(token, wanted[:, -1])
