"""The suite that every architecture inherits: absorbed at level 0 is the dense model; remove() restores it."""

from __future__ import annotations

import itertools

import pytest
import torch
from transformers import CONFIG_MAPPING, PreTrainedModel

from conftest import build_model
from larosa.api.sparsify import LaRoSAConfig, sparsify
from larosa.config.run import TokenPolicyConfig
from larosa.errors import ParityError
from larosa.evaluation import parity
from larosa.models.architecture import ARCHITECTURES, ArchitectureError, ModelView, architecture_of
from larosa.models.precision import keep_float64
from larosa.sparsity.handle import PlanError

CASES = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 16}),
    ("llama", {"num_key_value_heads": 6}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 8}),
    ("qwen2", {}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}),
    ("qwen3", {"head_dim": 16, "attention_bias": True}),
]
OTHERS = {
    "cwm": {"head_dim": 8, "sliding_window": 8},
    "diffllama": {"head_dim": 8},
    "ernie4_5": {"head_dim": 8, "use_bias": True},
    "helium": {"head_dim": 8, "attention_bias": True},
    "hunyuan_v1_dense": {"head_dim": 8},
    "internlm3": {},
    "iquestcoder": {},
    "ministral": {"head_dim": 8, "sliding_window": 8},
    "ministral3": {"head_dim": 8},
    "seed_oss": {"head_dim": 16, "attention_bias": True, "attention_out_bias": True},
    "smollm3": {"no_rope_layers": [1, 1, 1, 0, 1]},
}
"""Architectures whose every part is LLaMA's to the rotation: one form, granularity and basis each."""
GRANULARITIES = ["layer", "sublayer", "group", "model"]
BASES = ["pca", "random", "hadamard", "identity"]


def state(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_every_architecture_is_covered() -> None:
    assert {kind for kind, _ in CASES} | set(OTHERS) == set(ARCHITECTURES)


@pytest.mark.parametrize(("kind", "more"), OTHERS.items(), ids=list(OTHERS))
def test_level_zero_is_dense_for_all_others(kind: str, more: dict[str, object], tokens: torch.Tensor) -> None:
    if kind not in CONFIG_MAPPING:
        pytest.skip("this transformers does not know it")
    model = build_model(kind, tied=True, **more)
    dense, before = parity.logits(model, tokens), state(model)
    for form, granularity, basis in [
        ("absorbed", "layer", "pca"),
        ("absorbed", "sublayer", "random"),
        ("absorbed", "model", "hadamard"),
        ("simulated", "sublayer", "pca"),
        ("online", "sublayer", "output_aware"),
    ]:
        config = LaRoSAConfig(sparsity=0.0, form=form, granularity=granularity, basis=basis)
        with sparsify(model, tokens, config):
            error = (parity.logits(model, tokens) - dense).norm() / dense.norm()
        assert error < 1e-10, (form, granularity, basis)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_every_part_means_what_larosa_takes_it_for(kind: str, tokens: torch.Tensor) -> None:
    """Norms multiply by their weight and nothing else; the head's output is the logits."""
    if kind not in CONFIG_MAPPING:
        pytest.skip("this transformers does not know it")
    more = OTHERS.get(kind) or {"head_dim": 8}
    model = build_model(kind, dtype=torch.float32, tied=False, **more)
    logits, view = model(tokens).logits, ModelView(model)
    assert torch.equal(view.head(view.decoder(input_ids=tokens, use_cache=False).last_hidden_state), logits)
    exact = parity.logits(keep_float64(model.double()), tokens)
    assert (logits - exact).norm() / exact.norm() < 1e-5


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_level_zero_is_dense_with_online_transforms(tied: bool, tokens: torch.Tensor) -> None:
    model = build_model("qwen3", tied=tied, head_dim=16)
    dense, before = parity.logits(model, tokens), state(model)
    config = LaRoSAConfig(sparsity=0.0, form="online", granularity="sublayer", basis="output_aware")
    with sparsify(model, tokens, config):
        assert (parity.logits(model, tokens) - dense).norm() / dense.norm() < 1e-10
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("kind", "more"), CASES, ids=[f"{k}-{'-'.join(m) or 'plain'}" for k, m in CASES])
def test_level_zero_is_dense(kind: str, more: dict[str, object], tied: bool, tokens: torch.Tensor) -> None:
    model = build_model(kind, tied=tied, **more)
    dense = parity.logits(model, tokens)
    before = state(model)
    bases = list(itertools.product(GRANULARITIES, BASES))
    if tied or kind != CASES[0][0]:  # neither embeddings nor architectures see which basis it is
        bases = list(zip(GRANULARITIES, BASES, strict=True))
    for form, (granularity, basis) in itertools.product(["absorbed", "simulated"], bases):
        config = LaRoSAConfig(sparsity=0.0, form=form, granularity=granularity, basis=basis, group_size=2)
        with sparsify(model, tokens, config):
            error = (parity.logits(model, tokens) - dense).norm() / dense.norm()
        assert error < 1e-10, (form, granularity, basis)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(parity.logits(model, tokens), dense)


@pytest.mark.parametrize("keep", ["device", "cpu"])
def test_remove_restores_bits_ties_and_configuration(keep: str, tokens: torch.Tensor) -> None:
    model = build_model("llama", dtype=torch.float32, tied=True)
    before, parameters = state(model), dict(model.named_parameters())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    handle = sparsify(model, tokens, LaRoSAConfig(sparsity=0.5, granularity="sublayer", dense_weights_device=keep))
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert not model.config.tie_word_embeddings
    projections = 5 * (48 * 48 + 2 * 48 * 16 + 48 * 48 + 3 * 48 * 80)
    assert handle.kept_bytes == 4 * (projections + 384 * 48 + 11 * 48)
    handle.remove()
    handle.remove()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings
    assert {name: id(p) for name, p in model.named_parameters()} == {n: id(p) for n, p in parameters.items()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert hooks == sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_an_error_while_applying_leaves_the_model_whole(tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("qwen2", tied=True)
    before = state(model)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("larosa.rotation.absorb._rotate_output", fail)
    with pytest.raises(KeyboardInterrupt):
        sparsify(model, tokens, LaRoSAConfig(sparsity=0.5))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_wrong_rotation_is_caught(tokens: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("llama", dtype=torch.float32)
    dense = parity.reference(model, tokens)
    with sparsify(model, tokens, LaRoSAConfig(sparsity=0.5)) as handle:
        found = parity.check(model, handle, dense)
        assert found["relative_logits_error"] <= found["bound"] < 0.01
        handle.adapters[0].matrix.mul_(1.01)
        with pytest.raises(ParityError, match="level 0"):
            parity.check(model, handle, dense)


def test_generate_works_and_is_sparse(tokens: torch.Tensor) -> None:
    model = build_model("mistral", dtype=torch.float32)
    prompt = tokens[:2, :6]
    dense, logits = model.generate(prompt, max_new_tokens=8, do_sample=False), parity.logits(model, prompt)
    with sparsify(model, tokens, LaRoSAConfig(sparsity=0.0)):
        assert torch.equal(model.generate(prompt, max_new_tokens=8, do_sample=False), dense)
    with sparsify(model, tokens, LaRoSAConfig(sparsity=0.6)):
        cached = model.generate(prompt, max_new_tokens=8, do_sample=False)
        uncached = model.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=False)
        static = model.generate(prompt, max_new_tokens=8, do_sample=False, cache_implementation="static")
        assert torch.equal(cached, uncached)
        assert torch.equal(cached, static)
        assert not torch.allclose(parity.logits(model, prompt), logits)


@pytest.mark.parametrize("kind", ["skip_first_n", "last_fraction", "decode_only"])
def test_left_padding_and_static_cache_do_not_change_which_tokens_are_sparse(kind: str, tokens: torch.Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    policy = TokenPolicyConfig(kind=kind, n=4, fraction=0.5)
    prompt = tokens[:1, :8]
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), prompt], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 8])
    with sparsify(model, tokens, LaRoSAConfig(sparsity=0.5, token_policy=policy)):
        plain = model.generate(prompt, max_new_tokens=6, do_sample=False)[:, 8:]
        for more in ({}, {"cache_implementation": "static"}):
            shifted = model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False, **more)[:, 11:]
            assert torch.equal(shifted, plain), more


def test_a_model_is_sparse_once_at_a_time(tokens: torch.Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    with sparsify(model, tokens, LaRoSAConfig(sparsity=0.5)), pytest.raises(PlanError, match="remove"):
        sparsify(model, tokens, LaRoSAConfig(sparsity=0.5))
    sparsify(model, tokens, LaRoSAConfig(sparsity=0.5)).remove()


@pytest.mark.parametrize("form", ["absorbed", "simulated"])
def test_weights_that_require_grad_are_no_obstacle(form: str, tokens: torch.Tensor) -> None:
    model = build_model("qwen2", dtype=torch.float32).requires_grad_(True)
    with sparsify(model, tokens, LaRoSAConfig(sparsity=0.5, form=form)):
        assert model(tokens).logits.isfinite().all()


def test_unknown_architecture_lists_the_known() -> None:
    from transformers import GPT2Config

    with pytest.raises(ArchitectureError, match=r"llama, .*mistral, qwen2, qwen3"):
        architecture_of(GPT2Config())
