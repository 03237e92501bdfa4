"""Which tokens are sparse: by position, with padding, with and without a cache, in threads."""

import threading
from typing import Any

import pytest
import torch

from conftest import build_model
from larosa.api.sparsify import LaRoSAConfig, sparsify
from larosa.config.run import TokenPolicyConfig
from larosa.sparsity.token_policy import TokenPolicy, TokenPolicyError


def policy(kind: str, n: int = 0, fraction: float = 1.0) -> TokenPolicy:
    return TokenPolicy(TokenPolicyConfig(kind=kind, n=n, fraction=fraction))


LEFT_PADDED = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


def test_skip_first_n_counts_real_tokens() -> None:
    got = policy("skip_first_n", n=2).sparse_tokens(2, 6, 0, LEFT_PADDED)
    assert got.int().tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1]]


def test_skip_first_n_goes_on_behind_the_cache() -> None:
    assert policy("skip_first_n", n=5).sparse_tokens(1, 3, 4, None).tolist() == [[False, True, True]]


def test_last_fraction_of_the_prompt_then_all() -> None:
    half = policy("last_fraction", fraction=0.5)
    assert half.sparse_tokens(2, 6, 0, LEFT_PADDED).int().tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert half.sparse_tokens(1, 1, 6, None).tolist() == [[True]]


def test_decode_only() -> None:
    assert not policy("decode_only").sparse_tokens(1, 4, 0, None).any()
    assert policy("decode_only").sparse_tokens(1, 1, 4, None).all()


def test_the_prompt_ends_where_generate_says() -> None:
    half = policy("last_fraction", fraction=0.5)
    longer = torch.cat([LEFT_PADDED, torch.ones(2, 2, dtype=torch.int64)], dim=1)
    got = half.sparse_tokens(2, 8, 0, longer, prompt=6)
    assert got.int().tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1, 1]]
    decoded = policy("decode_only").sparse_tokens(2, 8, 0, longer, prompt=6)
    assert decoded.int().tolist() == [[0, 0, 0, 0, 0, 0, 1, 1]] * 2


@pytest.mark.parametrize("form", ["absorbed", "simulated"])
@pytest.mark.parametrize("kind", ["skip_first_n", "last_fraction", "decode_only"])
def test_generation_with_and_without_a_cache_is_the_same(kind: str, form: Any, tokens: torch.Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    chosen = TokenPolicyConfig.model_validate({"kind": kind, "n": 4, "fraction": 0.4})
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), tokens[:1, :5]], dim=1)
    prompts = torch.cat([padded, tokens[1:2, :8]])
    more = {"attention_mask": (torch.arange(8) >= torch.tensor([[3], [0]])).long(), "do_sample": False}
    more |= {"max_new_tokens": 7, "min_new_tokens": 7, "output_scores": True, "return_dict_in_generate": True}
    with sparsify(model, tokens, LaRoSAConfig(sparsity=0.5, form=form, token_policy=chosen)) as handle:
        with handle.policy.everywhere():
            every = model.generate(prompts, **more)
        cached, uncached = (model.generate(prompts, use_cache=use, **more) for use in (True, False))
        drafted = model.generate(prompts[1:], prompt_lookup_num_tokens=3, **{**more, "attention_mask": None})
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(torch.stack(cached.scores), torch.stack(uncached.scores), rtol=1e-4, atol=1e-4)
    assert torch.equal(drafted.sequences, cached.sequences[1:])
    assert not torch.allclose(torch.stack(cached.scores), torch.stack(every.scores), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["last_fraction", "decode_only"])
def test_a_prompt_in_pieces_is_refused(kind: str, tokens: torch.Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    chosen = TokenPolicyConfig.model_validate({"kind": kind, "n": 0, "fraction": 0.5})
    with sparsify(model, tokens, LaRoSAConfig(sparsity=0.5, token_policy=chosen)):
        with pytest.raises(TokenPolicyError, match="prefill_chunk_size"):
            model.generate(tokens[:1], max_new_tokens=2, prefill_chunk_size=8)
        if kind == "decode_only":
            with pytest.raises(TokenPolicyError, match=r"model\.generate\(\)"):
                model(tokens, use_cache=False)


def test_threads_have_a_mask_each(tokens: torch.Tensor) -> None:
    """One thread's pass runs while another's is between two layers."""
    model = build_model("llama", dtype=torch.float32)
    chosen = TokenPolicyConfig(kind="skip_first_n", n=3, fraction=1.0)
    with sparsify(model, tokens, LaRoSAConfig(sparsity=0.5, token_policy=chosen)):
        alone = [model(tokens[:2, :length]).logits for length in (9, 5)]
        found: list[torch.Tensor] = []

        def interrupt(*_: Any) -> None:
            hook.remove()
            other = threading.Thread(target=lambda: found.append(model(tokens[:2, :5]).logits))
            other.start()
            other.join()

        hook = model.model.layers[2].register_forward_hook(interrupt)
        between = model(tokens[:2, :9]).logits
    assert torch.equal(between, alone[0])
    assert torch.equal(found[0], alone[1])
