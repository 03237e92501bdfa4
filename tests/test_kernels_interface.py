"""What the kernels' functions refuse, take in fp32, and register for torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import larosa_kernels
import pytest
import torch
from larosa_kernels import bound_from_threshold, selected_mask, sparse_gemv, swiglu_topk, topk_select
from larosa_kernels.ops.decode_attention.workspace import AttentionConfig, default_attention
from test_kernels import DEVICE, normal


def test_refusals_say_expected_and_got() -> None:
    x, weight = normal(2, 64), normal(64, 32)
    bound = topk_select(x, 8)
    cases: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (ValueError, "contiguous", lambda: topk_select(normal(64, 2).t(), 8, backend="triton")),
        (ValueError, "contiguous", lambda: sparse_gemv(x, bound, normal(32, 64).t(), backend="triton")),
        (ValueError, "1 to 64, got 0", lambda: topk_select(x, 0)),
        (ValueError, "1 to 64, got 65", lambda: topk_select(x, 65)),
        (ValueError, "strict or keep", lambda: topk_select(x, 8, "some")),
        (ValueError, "backend", lambda: topk_select(x, 8, backend="cuda")),
        (ValueError, r"shape \[B, n\]", lambda: topk_select(x[0], 8)),
        (TypeError, "float32", lambda: topk_select(x.float(), 8, backend="triton")),
        (TypeError, "int32", lambda: sparse_gemv(x, bound.long(), weight)),
        (ValueError, r"expected shape \[64, 32\], got \[32, 32\]", lambda: sparse_gemv(x, bound, weight[:32])),
        (ValueError, "scale", lambda: sparse_gemv(x, bound, weight.to(torch.int8))),
        (ValueError, "residual", lambda: sparse_gemv(x, bound, weight, residual=weight)),
        (ValueError, "even", lambda: swiglu_topk(normal(1, 33), 3)),
        (ValueError, "at most 32768", lambda: topk_select(normal(1, 32769), 3, backend="triton")),
        (ValueError, "finite", lambda: bound_from_threshold(-1.0, torch.bfloat16)),
    ]
    for kind, message, call in cases:
        with pytest.raises(kind, match=message):
            call()


def test_references_take_fp32() -> None:
    x, weight = normal(2, 50).float().cpu(), normal(50, 20, seed=1).float().cpu()  # a GPU would take the kernels
    bound = topk_select(x, 20)
    assert (selected_mask(x, bound).sum(1) == 20).all()
    dense = torch.where(selected_mask(x, bound), x, 0) @ weight
    assert torch.allclose(sparse_gemv(x, bound, weight), dense, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"splits": 3}, {"num_warps": 0}, {"tile": 8, "dot": True}], ids=str)
def test_launch_shapes_of_decode_attention_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        AttentionConfig(**wrong)


@pytest.mark.parametrize("heads", [(1, 1), (32, 1), (8, 4), (4, 7), (8, 16), (1, 71)], ids=str)
def test_default_attention_combines_lightly(heads: tuple[int, int]) -> None:
    kv_heads, per = heads
    for rows in (1, 3, 64):
        assert default_attention(rows, kv_heads, per).combines_lightly(per)


def op_cases() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    for name in larosa_kernels.__all__:
        getattr(larosa_kernels, name)  # an op is registered when its module is imported
    x, w = normal(1, 64), normal(64, 64, seed=1)
    bound = topk_select(x, 8)
    cache = normal(1, 1, 8, 16)
    table = normal(8, 16)
    position = torch.tensor([3], device=DEVICE)
    ops = torch.ops.larosa
    return {
        "topk_select": (ops.topk_select, (x, 8, True, None, [4, 1])),
        "rmsnorm_topk": (ops.rmsnorm_topk, (x, w[0], 1e-5, 8, True, None, None, [4, 1])),
        "swiglu_topk": (ops.swiglu_topk, (x, 8, True, None, None, None, [4, 1])),
        "sparse_gemv": (
            ops.sparse_gemv,
            (
                x,
                w,
                bound,
                64,
                True,
                None,
                None,
                0.0,
                False,
                *[None] * 4,
                w.shape[1],
                1.0,
                False,
                False,
                [64, 4, 1, 1, 1],
            ),
        ),
        "decode_attention": (
            ops.decode_attention,
            (x, table, table, cache, cache.clone(), position, None, 0.0, False, [2, 16, 4, 0]),
        ),
        "greedy_sample": (
            ops.greedy_sample,
            (w[:3], *(torch.zeros(size, dtype=torch.int64, device=DEVICE) for size in (3, (3, 8), 1))),
        ),
    }


@pytest.mark.parametrize(
    "op", ["topk_select", "rmsnorm_topk", "swiglu_topk", "sparse_gemv", "decode_attention", "greedy_sample"]
)
def test_ops_are_registered_for_compilation(op: str) -> None:
    function, arguments = op_cases()[op]
    torch.library.opcheck(function.default, arguments, test_utils=("test_schema", "test_faketensor"))
