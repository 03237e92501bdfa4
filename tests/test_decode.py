"""The decoder against the evaluated transformers model, token by token, on the CPU in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_methods import applied
from test_schedule import method
from torch import Tensor
from transformers import PreTrainedModel

from conftest import build_model
from larosa.config.run import MethodConfig
from larosa.decode.decoder import Decoder
from larosa.decode.errors import DecodeError
from larosa.decode.from_model import weights_of
from larosa.decode.generate import Sampling, draw, generate
from larosa.decode.parity_model import check_model
from larosa.decode.prefill import prefill
from larosa.decode.selectors import SiteSelector, dense_selectors, level_selectors, selectors_of
from larosa.models.architecture import ARCHITECTURES, SITES
from larosa.sparsity.handle import apply
from larosa.sparsity.top_k import keep_mask

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 3}
MODELS = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
    ("mistral", {"sliding_window": None, "head_dim": 24}),
    ("qwen2", {"tie_word_embeddings": True}),
    ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE, "max_position_embeddings": 512}),
    ("qwen3", {"head_dim": 24}),
    ("qwen3", {"head_dim": 8, "attention_bias": True, "num_key_value_heads": 4, "rms_norm_eps": 1e-2}),
    ("cwm", {"head_dim": 16}),
    ("ministral", {"head_dim": 16}),
    ("seed_oss", {"attention_bias": True, "attention_out_bias": False}),
    ("internlm3", {}),
    ("iquestcoder", {}),
]
METHODS = {
    "magnitude": ("magnitude", {}),
    "threshold": ("magnitude", {"selector": "threshold"}),
    "teal": ("teal", {}),
    "cats": ("cats", {}),
    "wina": ("wina", {}),
    "wina/transform": ("wina/transform", {}),
    "layer": ("larosa/paper", {}),
    "block": ("larosa/paper", {"granularity": "sublayer"}),
    "model": ("larosa/paper", {"granularity": "model"}),
    "simulated": ("larosa/paper", {"form": "simulated"}),
    "simulated, scored": ("larosa/paper", {"form": "simulated", "importance": "column_norm"}),
    "int8": ("larosa/output_aware", {}),
    "int8, scored": ("larosa/output_aware", {"importance": "column_norm"}),
    "blocks": ("larosa/output_aware", {"block_size": 16}),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path))


def small(kind: str = "llama", **more: object) -> PreTrainedModel:
    tied = bool(more.pop("tie_word_embeddings", False))
    return build_model(kind, dtype=torch.float32, tied=tied, **{**SMALL, **more})


def chosen(name: str) -> MethodConfig:
    preset, more = METHODS[name]
    return method(preset, **more)


def stepped(decoder: Decoder, ids: Tensor) -> Tensor:
    """[B, T, vocabulary], one token at a time."""
    decoder.place(0)
    return torch.stack([decoder.step(column).clone() for column in ids.T], 1)


def close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(("kind", "more"), MODELS, ids=[f"{k}-{len(m)}" for k, m in MODELS])
def test_dense_decoder_is_the_model(kind: str, more: dict[str, object], tokens: Tensor) -> None:
    model = small(kind, **more)
    weights, ids = weights_of(model), tokens[:2, :12]
    decoder = Decoder(weights, dense_selectors(weights.shape), 16, batch=2)
    expected = model(ids).logits
    close(stepped(decoder, ids), expected)
    close(prefill(decoder, ids), expected)


def test_every_decodable_architecture_is_covered() -> None:
    assert {kind for kind, _ in MODELS} == {kind for kind, own in ARCHITECTURES.items() if own.decodable}


@pytest.mark.parametrize("kind", [kind for kind, own in ARCHITECTURES.items() if not own.decodable])
def test_another_attention_is_refused(kind: str) -> None:
    with pytest.raises(DecodeError, match=f"attention of model_type '{kind}'.* qwen2, qwen3"):
        weights_of(small(kind, head_dim=16))


def test_rotary_embeddings_of_long_contexts_are_transformers(tokens: Tensor) -> None:
    """Positions beyond the original length, where the scaling of llama3 moves every frequency band."""
    model = small(rope_parameters=LLAMA3_ROPE, max_position_embeddings=512)
    plain = small(rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, max_position_embeddings=512)
    ids = tokens[:, :25].reshape(1, 100)
    weights = weights_of(model)
    decoder = Decoder(weights, dense_selectors(weights.shape), 100)
    expected = model(ids).logits
    close(stepped(decoder, ids), expected)
    assert not torch.allclose(plain(ids).logits, expected, rtol=1e-2)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_sparse_decoder_is_the_sparse_model(kind: str, name: str, tokens: Tensor) -> None:
    model, ids = small(kind, **({"head_dim": 8} if kind == "qwen3" else {})), tokens[:2, :12]
    with applied(model, tokens, chosen(name)) as handle:
        weights = weights_of(model, handle)
        decoder = Decoder(weights, selectors_of(handle), 16, batch=2)
        expected = model(ids).logits
        close(stepped(decoder, ids), expected)
        close(prefill(decoder, ids), expected)
        with handle.level_zero():
            dense = model(ids).logits
    close(stepped(Decoder(weights, dense_selectors(weights.shape), 16, batch=2), ids), dense)
    close(prefill(decoder, ids, "dense"), dense)
    assert not torch.allclose(dense, expected, rtol=1e-2)


@pytest.mark.parametrize(("name", "sites"), [("teal", SITES), ("threshold", SITES), ("cats", ("h4",))])
def test_limits_are_expected_to_keep_what_the_plan_does(name: str, sites: tuple[str, ...], tokens: Tensor) -> None:
    model = small()
    with applied(model, tokens, chosen(name)) as handle:
        plan, selectors = handle.plan, selectors_of(handle)
        found = check_model(model, handle, weights_of(model, handle), tokens[0])["achieved_sparsity"]
    for site in SITES:
        width = plan.shape.sites[site].width
        assert all((selector.threshold is not None) == (site in sites) for selector in selectors[site])
        assert all(selector.k == plan.levels.kept[site][0] for selector in selectors[site])
        assert (selectors[site][0].k < width) == (site in sites)
        assert found[site] == pytest.approx(1 - selectors[site][0].k / width, abs=0.1)
    own = {site: tuple(8 * i + layer + 1 for layer in range(3)) for i, site in enumerate(SITES)}
    with apply(model, replace(plan, levels=replace(plan.levels, kept=own))) as handle:
        selectors = selectors_of(handle)
    assert all(tuple(selector.k for selector in selectors[site]) == own[site] for site in sites)


def test_a_limit_that_is_expected_to_keep_everything_is_of_unknown_share() -> None:
    assert [SiteSelector(k).expected(64) for k in (20, 64)] == [20, 64]
    assert [SiteSelector(k, threshold=0.5).expected(64) for k in (20, 64)] == [20, None]


@pytest.mark.parametrize("name", ["magnitude", "layer"])
def test_greedy_generation_is_transformers(name: str, tokens: Tensor) -> None:
    model, prompt = small("mistral", sliding_window=None), tokens[:2, :6]
    with applied(model, tokens, chosen(name)) as handle:
        expected = model.generate(prompt, max_new_tokens=10, min_new_tokens=10, do_sample=False, eos_token_id=None)
        decoder = Decoder(weights_of(model, handle), selectors_of(handle), 16, batch=2)
    assert torch.equal(generate(decoder, prompt, 10), expected)
    stop = int(expected[0, 9])
    cut = generate(decoder, prompt, 10, stop=stop)
    first = int((expected[0, 6:] == stop).nonzero()[0]) + 6
    assert torch.equal(cut[0, : first + 1], expected[0, : first + 1])
    assert bool((cut[0, first:] == stop).all())


def test_prefill_then_steps_are_steps(tokens: Tensor) -> None:
    weights, ids = weights_of(small()), tokens[:1, :12]
    decoder = Decoder(weights, level_selectors(weights.shape, 0.5), 12)
    expected = stepped(decoder, ids)
    close(prefill(decoder, ids[:, :8]), expected[:, :8])
    for i in range(8, 12):
        close(decoder.step(int(ids[0, i])), expected[:, i])
    with pytest.raises(DecodeError, match="full"):
        decoder.advance()


def test_sampling_follows_the_distribution_and_its_cuts() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]]).repeat(20_000, 1)
    generator = torch.Generator().manual_seed(0)

    def shares(how: Sampling) -> Tensor:
        return draw(logits, how, generator).bincount(minlength=4) / len(logits)

    torch.testing.assert_close(shares(Sampling(0.7)), (logits[0] / 0.7).softmax(-1), atol=0.01, rtol=0)
    torch.testing.assert_close(shares(Sampling(1.0, top_k=2))[:2], logits[0, :2].softmax(-1), atol=0.01, rtol=0)
    assert shares(Sampling(1.0, top_k=2))[2:].sum() == 0
    assert shares(Sampling(1.0, top_p=0.6))[0] == 1  # the first already has 0.64
    assert shares(Sampling(1.0, top_p=0.7))[1:].sum() > 0


def test_sampled_generation_repeats_with_its_seed(tokens: Tensor) -> None:
    weights = weights_of(small())
    decoder = Decoder(weights, level_selectors(weights.shape, 0.4), 40)
    how = Sampling(temperature=1.0, top_k=50, top_p=0.9, seed=3)
    first = generate(decoder, tokens[:1, :4], 36, how)
    assert torch.equal(generate(decoder, tokens[:1, :4], 36, how), first)
    assert torch.equal(decoder.tokens[:, :40], first)
    assert not torch.equal(generate(decoder, tokens[:1, :4], 36, Sampling(1.0, seed=4)), first)


@pytest.mark.parametrize("ties", ["strict", "keep"])
def test_masks_in_bfloat16_are_those_of_the_sparsifier(ties: str) -> None:
    from larosa.decode import ops

    x = torch.randn(3, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    x[:, ::3] = 0.5  # ties
    for k in (1, 20, 40, 95):
        keep = ops.topk_select(x, k, ties, backend="reference")
        assert torch.equal(ops.selected_mask(x, keep), keep_mask(x, k, ties)), k


def test_the_decoder_says_what_it_cannot_do(tokens: Tensor) -> None:
    weights = weights_of(small("mistral", sliding_window=8))
    with pytest.raises(DecodeError, match="sliding window"):
        Decoder(weights, dense_selectors(weights.shape), 16)
    with pytest.raises(DecodeError, match="float64"):
        weights_of(build_model("llama"))
    with pytest.raises(DecodeError, match="no channel"):
        level_selectors(weights.shape, 0.999)
    model = small()
    with (
        applied(model, tokens, method("r_sparse")) as handle,
        pytest.raises(DecodeError, match="low-rank"),
    ):
        weights_of(model, handle)
    decoder = Decoder(weights, dense_selectors(weights.shape), 8)
    with pytest.raises(DecodeError, match="does not fit"):
        prefill(decoder, tokens[:1, :9])
    assert set(decoder.selectors) == set(SITES)


@pytest.mark.parametrize("how", [{"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"temperature": float("inf")}])
def test_impossible_sampling_is_refused(how: dict[str, float]) -> None:
    with pytest.raises(DecodeError, match="impossible sampling"):
        Sampling(**{"temperature": 1.0, **how})
