"""Both forms and magnitude against independent few-line forwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from conftest import build_model
from larosa.api.sparsify import LaRoSAConfig, sparsify
from larosa.calibration.statistics import CalibrationError, second_moments, with_gamma
from larosa.config.run import CoefficientsConfig, TokenPolicyConfig
from larosa.data.tokens import TokenBlock
from larosa.models.architecture import norm_epsilon

ONES = CoefficientsConfig(h1=1, h2=1, h3=1, h4=1)


def block(tokens: Tensor) -> TokenBlock:
    return TokenBlock(tokens, "test", 1, tokens.numel(), "")


def drop(x: Tensor, k: int) -> Tensor:
    keep = x.abs().topk(k, dim=-1).indices
    return torch.zeros_like(x).scatter(-1, keep, x.gather(-1, keep))


def test_second_moments_are_those_of_the_normed_inputs(tokens: Tensor) -> None:
    model = build_model("llama")
    found = second_moments(model, block(tokens), batch_size=3)
    seen: dict[str, Tensor] = {}
    layer = model.model.layers[2]
    layer.input_layernorm.register_forward_hook(lambda _m, _a, y: seen.update(h1=y))
    layer.post_attention_layernorm.register_forward_hook(lambda _m, _a, y: seen.update(h3=y))
    model(tokens)
    for i, (name, norm) in enumerate([("h1", layer.input_layernorm), ("h3", layer.post_attention_layernorm)]):
        y = seen[name].reshape(-1, 48)
        x = y / norm.weight
        torch.testing.assert_close(found[2, i].double(), x.T @ x / len(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(with_gamma(found, model)[2, i], y.T @ y / len(y), rtol=1e-4, atol=1e-4)


def test_too_few_tokens_and_nan_are_refused(tokens: Tensor) -> None:
    model = build_model("llama")
    with pytest.raises(CalibrationError, match="32 calibration tokens cannot span 48"):
        second_moments(model, block(tokens[:1]), 1)
    model.model.layers[1].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(CalibrationError, match=r"layer 2, h1: .*NaN"):
        second_moments(model, block(tokens), 1)


@pytest.mark.parametrize("form", ["absorbed", "simulated"])
def test_one_layer_against_a_plain_reference(form: str, tokens: Tensor) -> None:
    """First layer: rotate, Top-K and rotate back by hand; absorbed must agree up to the basis."""
    model = build_model("llama", num_hidden_layers=1, attention_bias=True)
    layer, level = model.model.layers[0], 0.5
    moments = second_moments(model, block(tokens), 1).double()
    if form == "simulated":
        moments = with_gamma(moments, model)
    values, Q = torch.linalg.eigh(moments[0, 0])
    Q = Q[:, values.argsort(descending=True)]

    def sparse_norm(norm: torch.nn.Module, h: Tensor) -> Tensor:
        x = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + norm_epsilon(norm))
        if form == "simulated":
            return drop(norm.weight * x @ Q, 24) @ Q.T
        return norm.weight * (drop(x @ Q, 24) @ Q.T)

    h = model.model.embed_tokens(tokens)
    attention = layer.self_attn
    attention.o_proj.register_forward_pre_hook(lambda _m, args: (drop(args[0], 24),))
    position = model.model.rotary_emb(h, torch.arange(h.shape[1])[None])
    mask = torch.full((h.shape[1],) * 2, float("-inf"), dtype=h.dtype).triu(1)[None, None]
    h = (
        h
        + attention(
            hidden_states=sparse_norm(layer.input_layernorm, h), position_embeddings=position, attention_mask=mask
        )[0]
    )
    x = sparse_norm(layer.post_attention_layernorm, h)
    hidden = drop(torch.nn.functional.silu(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x), 40)
    expected = model.lm_head(model.model.norm(h + layer.mlp.down_proj(hidden)))

    attention.o_proj._forward_pre_hooks.clear()
    config = LaRoSAConfig(sparsity=level, coefficients=ONES, form=form)
    with sparsify(model, tokens, config):
        got = model(tokens).logits
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


def test_skipped_tokens_are_dense(tokens: Tensor) -> None:
    """Causality: with the first 10 tokens dense their logits are the dense model's, later ones are not."""
    model = build_model("qwen2")
    dense = model(tokens).logits
    policy = TokenPolicyConfig(kind="skip_first_n", n=10, fraction=1.0)
    for form in ("absorbed", "simulated"):
        with sparsify(model, tokens, LaRoSAConfig(sparsity=0.5, form=form, token_policy=policy)):
            sparse = model(tokens).logits
        torch.testing.assert_close(sparse[:, :10], dense[:, :10])
        assert not torch.allclose(sparse[:, 10:], dense[:, 10:])
