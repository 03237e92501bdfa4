"""What a sparse model refuses, and that the dense one is whole again and unguarded afterwards."""

from __future__ import annotations

import copy
import gc
import io
import logging
import pickle
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from conftest import build_model
from larosa.api.sparsify import LaRoSAConfig, sparsify
from larosa.calibration.statistics import second_moments
from larosa.data.tokens import TokenBlock
from larosa.evaluation.perplexity import perplexity
from larosa.evaluation.tasks.likelihood import likelihoods
from larosa.models.inputs import ActivationError, InputError, longest_sequence
from larosa.rotation.online import OnlineTransform
from larosa.rotation.rotation import LayerwiseRotationMatrix
from larosa.sparsity.guard import SparseModelError
from larosa.sparsity.handle import HandleError, PlanError, SparsityHandle, handle_of
from larosa.sparsity.threshold import ThresholdSparsification
from larosa.sparsity.top_k import TopKSparsification, keep_mask

FORMS = ["absorbed", "simulated"]
REMEDY = "larosa.handle_of(model).remove()"


def sparse(tokens: Tensor, form: str = "absorbed", **more: Any) -> tuple[PreTrainedModel, SparsityHandle]:
    model = build_model("llama", dtype=torch.float32, tied=True)
    return model, sparsify(model, tokens, LaRoSAConfig(sparsity=0.5, form=form, **more))


def refusal(action: Callable[..., Any], *args: Any) -> str:
    try:
        action(*args)
    except SparseModelError as error:
        return str(error)
    return "not refused"


class Holder(nn.Module):
    """Somebody's module around the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model


COPIES: dict[str, Callable[[PreTrainedModel, Path], Any]] = {
    "save_pretrained": lambda model, path: model.save_pretrained(path / "saved"),
    "save_pretrained with a state": lambda model, path: model.save_pretrained(path / "saved", state_dict={}),
    "push_to_hub": lambda model, _: model.push_to_hub("nobody/nothing"),
    "save_pretrained of the decoder": lambda model, path: model.model.save_pretrained(path / "saved"),
    "state_dict": lambda model, _: model.state_dict(),
    "state_dict of the decoder": lambda model, _: model.model.state_dict(),
    "state_dict of a linear": lambda model, _: model.model.layers[2].mlp.up_proj.state_dict(),
    "state_dict of what holds it": lambda model, _: Holder(model).state_dict(),
    "safetensors": lambda model, path: safetensors.torch.save_model(model, str(path / "saved.safetensors")),
    "torch.save": lambda model, _: torch.save(model, io.BytesIO()),
    "torch.save of a layer": lambda model, _: torch.save(model.model.layers[1], io.BytesIO()),
    "pickle": lambda model, _: pickle.dumps(model),
    "pickle of what holds it": lambda model, _: pickle.dumps({"models": [Holder(model)]}),
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "deepcopy of the decoder": lambda model, _: copy.deepcopy(model.model),
    "copy": lambda model, _: copy.copy(model),
    "jit": lambda model, _: torch.jit.trace(model.model, torch.zeros(1, 3, dtype=torch.int64), check_trace=False),
}
CHANGES: dict[str, Callable[[PreTrainedModel], Any]] = {
    "load_state_dict": lambda model: model.load_state_dict({}, strict=False),
    "load_state_dict of a layer": lambda model: model.model.layers[0].load_state_dict({}, strict=False),
    "resize": lambda model: model.resize_token_embeddings(390),
    "resize of the decoder": lambda model: model.model.resize_token_embeddings(390),
    "set_input_embeddings": lambda model: model.set_input_embeddings(nn.Embedding(390, 48)),
    "set_output_embeddings": lambda model: model.set_output_embeddings(nn.Linear(48, 390)),
    "bfloat16": lambda model: model.bfloat16(),
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
    "to dtype": lambda model: model.to(torch.bfloat16),
    "to device": lambda model: model.to("meta"),
    "to device of a linear": lambda model: model.model.layers[0].mlp.gate_proj.to("meta"),
    "to of what holds it": lambda model: Holder(model).to(torch.float16),
    "to_empty": lambda model: model.to_empty(device="cpu"),
}


@pytest.mark.parametrize("form", FORMS)
def test_no_copy_of_a_sparse_model(form: str, tokens: Tensor, tmp_path: Path) -> None:
    model, handle = sparse(tokens, form)
    for name, copies in COPIES.items():
        assert REMEDY in refusal(copies, model, tmp_path), name
    assert not (tmp_path / "saved").exists()
    handle.remove()
    for name in ("state_dict", "torch.save of a layer", "pickle", "deepcopy", "copy", "safetensors"):
        COPIES[name](model, tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_no_change_to_a_sparse_model(form: str, tokens: Tensor) -> None:
    model, handle = sparse(tokens, form)
    before = model(tokens).logits
    for name, changes in CHANGES.items():
        assert REMEDY in refusal(changes, model), name
    assert torch.equal(model(tokens).logits, before)
    assert model.to("cpu") is model
    assert model.float() is model
    assert torch.equal(model(tokens).logits, before)
    handle.remove()
    assert model.bfloat16().dtype == torch.bfloat16
    assert model.resize_token_embeddings(390).weight.shape == (390, 48)


@pytest.mark.parametrize("form", FORMS)
def test_remove_leaves_no_guard(form: str, tokens: Tensor, tmp_path: Path) -> None:
    def attributes(model: PreTrainedModel) -> list[dict[str, Any]]:
        return [
            {key: len(value) if isinstance(value, dict) else id(value) for key, value in vars(module).items()}
            for module in model.modules()
        ]

    model = build_model("llama", dtype=torch.float32, tied=True)
    model.model.push_to_hub = print  # somebody's own, which must come back
    before, dense = attributes(model), model(tokens).logits
    policy = {"kind": "decode_only", "n": 0, "fraction": 1.0}
    sparsify(model, tokens, LaRoSAConfig(sparsity=0.5, form=form, token_policy=policy)).remove()
    assert attributes(model) == before
    del model.model.push_to_hub
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(tokens).logits, dense)


def test_an_error_while_applying_leaves_no_guard(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("llama", dtype=torch.float32)
    monkeypatch.setattr("larosa.rotation.absorb._rotate_output", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sparsify(model, tokens, LaRoSAConfig(sparsity=0.5))
    copy.deepcopy(model)
    with pytest.raises(HandleError, match="dense"):
        handle_of(model)


def test_a_lost_handle_is_found(tokens: Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    with pytest.raises(HandleError, match="dense"):
        handle_of(model)
    dense = model(tokens).logits
    sparsify(model, tokens, LaRoSAConfig(sparsity=0.5))  # the handle is let go of
    gc.collect()
    with pytest.raises(PlanError, match=re.escape(REMEDY)):
        sparsify(model, tokens, LaRoSAConfig(sparsity=0.5))
    with pytest.raises(HandleError, match="whole model"):
        handle_of(model.model)
    handle_of(model).remove()
    assert torch.equal(model(tokens).logits, dense)
    with pytest.raises(HandleError, match="dense"):
        handle_of(model)


def test_a_dropped_sparse_model_is_freed(tokens: Tensor) -> None:
    model, handle = sparse(tokens)
    gone = [weakref.ref(model), weakref.ref(handle), weakref.ref(model.model.embed_tokens.weight)]
    del model, handle
    gc.collect()
    assert [one() for one in gone] == [None] * 3


def test_discard_frees_the_dense_weights_and_keeps_the_guards(tokens: Tensor, tmp_path: Path) -> None:
    model = build_model("llama", dtype=torch.float32)
    kept = weakref.ref(model.model.layers[0].mlp.up_proj.weight)
    with sparsify(model, tokens, LaRoSAConfig(sparsity=0.5)) as handle:
        before = model(tokens).logits
        assert handle.kept_bytes > 0
        handle.discard()
        handle.discard()
        assert handle.kept_bytes == 0
        assert kept() is None
    assert torch.equal(model(tokens).logits, before)  # leaving the block does not remove
    with pytest.raises(HandleError, match="discarded, so load the model again"):
        handle_of(model).remove()
    for name, copies in COPIES.items():
        assert "load the model again" in refusal(copies, model, tmp_path), name
    with pytest.raises(PlanError, match="load the model again"):
        sparsify(model, tokens, LaRoSAConfig(sparsity=0.5))
    handle.exchange(model.lm_head, "bias" if model.lm_head.bias is not None else "weight", model.lm_head.weight * 2)
    assert handle.kept_bytes == 0
    assert torch.allclose(model(tokens).logits, 2 * before)


def test_discard_of_a_removed_handle_is_refused(tokens: Tensor) -> None:
    model, handle = sparse(tokens)
    handle.remove()
    with pytest.raises(HandleError, match="nothing to discard"):
        handle.discard()
    sparsify(model, tokens, LaRoSAConfig(sparsity=0.5))
    with pytest.raises(HandleError, match="nothing to discard"):  # another handle's model now
        handle.discard()


def test_the_rotated_basis_does_not_leave_the_model(tokens: Tensor) -> None:
    model = build_model("llama", tied=True)
    embedded = model.model.embed_tokens(tokens)
    dense = model(tokens, output_hidden_states=True)
    with sparsify(model, tokens, LaRoSAConfig(sparsity=0.0)):
        with pytest.raises(InputError, match=r"inputs_embeds.*input_ids"):
            model(inputs_embeds=embedded)
        for ask in (True, [1]):
            with pytest.raises(InputError, match=r"output_hidden_states.*simulated"):
                model(tokens, output_hidden_states=ask)
        model.config.output_hidden_states = True
        with pytest.raises(InputError, match="output_hidden_states"):
            model(tokens)
        model.config.output_hidden_states = False
        model(tokens, output_hidden_states=False)
    with sparsify(model, tokens, LaRoSAConfig(sparsity=0.0, form="simulated")):
        torch.testing.assert_close(model(inputs_embeds=embedded).logits, dense.logits)
        found = model(tokens, output_hidden_states=True).hidden_states
        for state, expected in zip(found, dense.hidden_states, strict=True):
            torch.testing.assert_close(state, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: ids + 384, r"token id \d+ is outside the vocabulary of 384"),
        (lambda ids: ids - 384, r"token id -\d+ is outside"),
        (lambda ids: ids.repeat(1, 9), "288 tokens, but the model reads at most 256"),
        (lambda ids: ids.float(), "token ids are int64"),
        (lambda ids: ids > 3, "token ids are int64"),
    ],
)
def test_ids_that_the_model_cannot_read(change: Callable[[Tensor], Tensor], message: str, tokens: Tensor) -> None:
    bad = change(tokens)
    model, handle = sparse(tokens)
    with handle, pytest.raises(InputError, match=message):
        model(bad)
    with pytest.raises(InputError, match=message):
        perplexity(model, bad, 1, "dense")
    with pytest.raises(InputError, match=message):
        second_moments(model, TokenBlock(bad, "bad", 1, bad.numel(), ""), 1)
    if bad.dtype == torch.int64:
        with pytest.raises(InputError, match=message):
            likelihoods(model, [(tuple(bad[0].tolist()), (3,))], 1)


def test_a_continuation_outside_the_vocabulary_is_refused() -> None:
    model = build_model("llama", dtype=torch.float32)
    for last in (384, -1):
        with pytest.raises(InputError, match="outside the vocabulary"):
            likelihoods(model, [((3, 4), (5, last))], 1)


def test_generation_ends_at_the_last_position(tokens: Tensor) -> None:
    model, handle = sparse(tokens)
    prompt = tokens[:1].repeat(1, 8)[:, :250]
    with handle:
        assert model.generate(prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False).shape == (1, 256)
        with pytest.raises(InputError, match="257 tokens"):
            model.generate(prompt, max_new_tokens=9, min_new_tokens=9, do_sample=False)


def test_rope_scaling_extends_the_positions() -> None:
    config = build_model("llama").config
    assert longest_sequence(config) == 256
    config.rope_parameters = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
    assert longest_sequence(config) == 1024
    config.rope_parameters = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}
    assert longest_sequence(config) == 256


def test_gradients_of_replaced_weights_are_refused_or_announced(
    tokens: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model("qwen2", dtype=torch.float32).requires_grad_(True)
    with sparsify(model, tokens, LaRoSAConfig(sparsity=0.5)) as handle, caplog.at_level(logging.WARNING):
        with torch.no_grad():
            model(tokens)
        assert caplog.messages == []
        model(tokens)
        model(tokens)
        assert len(caplog.messages) == 1
        assert "take none" in caplog.messages[0]
        model.train()
        with pytest.raises(SparseModelError, match=r"model\.eval\(\)"):
            model(tokens)
        with torch.no_grad():
            model(tokens)
        handle.remove()
        model(tokens).logits.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_simulated_form_has_the_gradient_of_what_it_keeps(tokens: Tensor) -> None:
    model = build_model("llama").requires_grad_(True)
    weight = model.model.layers[1].mlp.up_proj.weight

    def loss() -> Tensor:
        return model(tokens).logits.log_softmax(-1)[:, :, 7].mean()

    with sparsify(model, tokens, LaRoSAConfig(sparsity=0.5, form="simulated")):
        loss().backward()
        direction, step = torch.randn(weight.shape, dtype=weight.dtype), 1e-7
        with torch.no_grad():
            sides = []
            for sign in (1, -1):
                weight += sign * step * direction
                sides.append(float(loss()))
                weight -= sign * step * direction
    expected = (sides[0] - sides[1]) / (2 * step)
    assert float((weight.grad * direction).sum()) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.complex64])
def test_an_activation_has_floats(dtype: torch.dtype) -> None:
    x = torch.ones(2, 8).to(dtype)
    transform = OnlineTransform(torch.eye(8)[None], "model", torch.float32)
    rotation = LayerwiseRotationMatrix(8)
    everything: list[Callable[[Tensor], Any]] = [
        TopKSparsification(8, 0.5),
        TopKSparsification(8, 0.0),
        ThresholdSparsification(8, 0.1),
        lambda x: keep_mask(x, 3, "strict"),
        transform,
        rotation.rotate,
        rotation.unrotate,
        rotation.fit,
    ]
    for given in everything:
        with pytest.raises(ActivationError, match=r"floating-point tensor, got torch\."):
            given(x)
        with pytest.raises(TypeError):
            given(x)
