"""The kernels inside the transformers model: same tokens, same logits, unread rows, nothing left behind."""

from __future__ import annotations

import pytest
import torch
from test_methods import applied, cache  # noqa: F401
from test_schedule import method
from torch import Tensor, nn

from conftest import build_model
from larosa.decode.errors import DecodeError
from larosa.decode.sparse_linear import FEW_ROWS, SparseLinear, sparse_linears
from larosa.evaluation import parity


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("name", ["magnitude", "teal", "cats", "larosa/paper", "larosa/output_aware"])
def test_generate_gives_the_sparse_model_s_tokens(kind: str, name: str, tokens: Tensor) -> None:
    model = build_model(kind, dtype=torch.float32, hidden_size=64, num_attention_heads=4)
    how = {"max_new_tokens": 8, "do_sample": False, "cache_implementation": "static", "eos_token_id": None}
    before = list(model.modules())
    with applied(model, tokens, method(name)):
        expected, logits = model.generate(tokens[:1, :9], **how), parity.logits(model, tokens[:1, :1])
        with sparse_linears(model) as made:
            assert len(made) == 7 * 5
            assert torch.equal(model.generate(tokens[:1, :9], **how), expected)
            torch.testing.assert_close(parity.logits(model, tokens[:1, :1]), logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(parity.logits(model, tokens[:1, :1]), logits)
    assert [id(module) for module in model.modules()] == [id(module) for module in before]


def test_what_a_sparse_linear_would_lose_is_refused(tokens: Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    before = list(model.modules())
    with applied(model, tokens, method("r_sparse")), pytest.raises(DecodeError, match="forward hooks"):  # noqa: SIM117
        with sparse_linears(model):
            pass
    assert [id(module) for module in model.modules()] == [id(module) for module in before]


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("rows", [1, 3])
def test_rows_behind_zeros_are_not_read(backend: str, rows: int) -> None:
    draw = torch.Generator().manual_seed(0)
    linear = nn.Linear(96, 40, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(rows, 2, 96, generator=draw)[:, :1].to(torch.bfloat16)
    x[..., torch.arange(0, 96, 3)] = 0
    expected = linear(x).float()
    sparse = SparseLinear(linear, backend)
    sparse.weight[torch.arange(0, 96, 3)] = float("nan")
    assert rows <= FEW_ROWS
    torch.testing.assert_close(sparse(x).float(), expected, rtol=2e-2, atol=2e-2)
