"""What `larosa.sparsify` says of a wrong argument, and what it takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from conftest import build_model
from larosa import ArgumentError, LaRoSAConfig, LarosaError, sparsify
from larosa.calibration.statistics import CalibrationError
from larosa.models.architecture import ArchitectureError
from larosa.sparsity.handle import PlanError


def test_tokens_are_taken_as_they_come(tokens: Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    with sparsify(model, tokens, {"sparsity": 0.4}):
        expected = model(tokens).logits
    ways: list[Any] = [
        tokens.tolist(), tuple(map(tuple, tokens.tolist())), tokens.int(), tokens.numpy(),
        {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}, {"input_ids": tokens.tolist()},
    ]  # fmt: skip
    for way in ways:
        with sparsify(model, way, {"sparsity": 0.4}):
            assert torch.equal(model(tokens).logits, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[0], r"\[N, T\] int64.*got \[32\].*tokens\[None\]"),
        (lambda t: t[None], r"\[N, T\] int64.*got \[1, 4, 32\]"),
        (lambda t: t[:0], r"\[N, T\] int64.*got \[0, 32\]"),
        (lambda t: t[:, :1], r"T >= 2.*got \[4, 1\]"),
        (lambda _: [], r"\[N, T\] int64.*got \[0\]"),
        (lambda t: t.float(), r"\[N, T\] int64, got \[4, 32\] torch\.float32"),
        (lambda t: t > 5, r"torch\.bool"),
        (lambda t: t.to("meta"), "meta"),
        (lambda t: [t[0].tolist(), t[1, :5].tolist()], "lists of them of equal length"),
        (lambda _: {"input_ids": [[5, 6], [7]], "attention_mask": [[1, 1], [1]]}, "lists of them of equal length"),
        (lambda _: [[5, "six"]], "not text"),
        (lambda _: [[2**70, 1]], "tokens must be"),
        (lambda _: "some text", r"not text: tokenizer\(text\)\.input_ids.*got str"),
        (lambda _: ["some text"], "not text"),
        (lambda _: None, "got NoneType"),
        (lambda t: {"ids": t}, "no input_ids, only ids"),
        (lambda _: {}, "no input_ids, only nothing"),
        (lambda t: {"input_ids": t, "attention_mask": (t > 9).long()}, "padded"),
        (lambda t: t.where(t != t[0, 0], 384), "token id 384 is outside the vocabulary of 384"),
        (lambda t: t.where(t != t[0, 0], -100), "token id -100 is outside"),
        (lambda t: t.repeat(1, 9), "a sequence of 288 tokens, but the model reads at most 256"),
    ],
)
def test_what_is_wrong_with_tokens_is_said(change: Any, message: str, tokens: Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    for asked in ({"sparsity": 0.4, "method": "magnitude"}, {"config": LaRoSAConfig(sparsity=0.4)}):
        with pytest.raises(LarosaError, match=message):
            sparsify(model, change(tokens), **asked)


def test_too_few_tokens_name_no_setting_of_run_py(tokens: Tensor) -> None:
    for method in ("larosa/paper", "larosa/official", "larosa/output_aware", "larosa/tuned"):
        with pytest.raises(CalibrationError, match="32 calibration tokens cannot span 48") as raised:
            sparsify(build_model("llama"), tokens[:1], sparsity=0.4, method=method)
        assert "calibration." not in str(raised.value)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, r"sparsity=0\.4"),
        ({"sparsity": 1.0}, "sparsity: Input should be less than 1"),
        ({"sparsity": float("nan")}, "sparsity: "),
        ({"sparsity": "much"}, "sparsity: .*much"),
        (
            {"sparsity": 0.4, "method": "lorosa"},
            "method='lorosa' is not known; expected one of cats, dense.*larosa/tuned",
        ),
        ({"sparsity": 0.4, "method": "../model/tiny-llama"}, "is not known"),
        ({"sparsity": 0.4, "method": 5}, "method=5 is not known"),
        ({"sparsity": 0.4, "method": {"name": "teal"}}, "method.preset: Field required"),
        ({"sparsity": 0.4, "schedule": "flat"}, "schedule='flat' is not known; expected one of constrained, file"),
        ({"sparsity": 0.4, "token_policy": "some"}, "token_policy='some' is not known; expected one of all"),
        (
            {"sparsity": 0.4, "settings": {"method.blok_size": 64}},
            r"method\.blok_size: unknown key \(spelling\?\) \(conf/",
        ),
        (
            {"sparsity": 0.4, "settings": {"block_size": 64}},
            "'block_size' must begin with method., schedule., token_policy.",
        ),
        ({"sparsity": 0.4, "settings": {"method.tuning.steps": 9}}, r"'method\.tuning\.steps' is no setting"),
        ({"sparsity": 0.4, "settings": ["method.selector=threshold"]}, "settings must map names to values, got list"),
        ({"sparsity": 0.4, "settings": {"method.form": "absorbed"}}, "go together"),
        ({"sparsity": 0.4, "settings": {"schedule.coefficients.h1": float("inf")}}, "finite"),
        ({"sparsity": 0.4, "settings": {"method.block_size": 7}}, "block_size=7 must divide the model's width 48"),
        ({"sparsity": 0.4, "batch_size": 0}, "batch_size: "),
        ({"sparsity": 0.4, "seed": -1}, "seed: "),
        ({"sparsity": 0.4, "seed": 2**63}, "seed: "),
        ({"sparsity": 0.4, "dense_weights_device": "disk"}, "dense_weights_device: "),
        ({"config": 0.4}, r"LaRoSAConfig or a mapping.*got float: say sparsity=0\.4"),
        ({"config": "larosa/tuned"}, "say method='larosa/tuned'"),
        (
            {"config": {"sparcity": 0.4}},
            r"sparcity: unknown key; did you mean sparsity or tuning.sparsity\? \(LaRoSAConfig has sparsity,",
        ),
        ({"config": {"sparsity": 0.4, "basis": "output_aware"}}, "go together"),
        ({"config": {"sparsity": 0.4}, "method": "teal"}, "config says everything already: leave out method"),
        ({"config": {"sparsity": 0.4}, "seed": 0}, "leave out seed"),
    ],
)
def test_what_is_wrong_with_settings_is_said(asked: dict[str, Any], message: str, tokens: Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    dense = model(tokens).logits
    with pytest.raises(LarosaError, match=message):
        sparsify(model, tokens, **asked)
    assert torch.equal(model(tokens).logits, dense)


class Int8Params(nn.Parameter):
    """Looks like a weight of bitsandbytes."""


def changed(name: str) -> PreTrainedModel | nn.Module | str:
    """A model that cannot be made sparse."""
    model = build_model("llama", dtype=torch.float32)
    linear = model.model.layers[1].mlp.up_proj
    match name:
        case "name":
            return "meta-llama/Llama-2-7b-hf"
        case "part":
            return model.model.layers
        case "wrapped":
            return nn.DataParallel(model)
        case "compiled":
            return torch.compile(model)
        case "headless":
            return AutoModel.from_config(model.config)
        case "meta":
            return model.to("meta")
        case "offloaded":
            linear.to("meta")
        case "quantised":
            model.is_quantized = True
        case "quantised by its configuration":
            model.config.quantization_config = {"quant_method": "gptq"}
        case "bitsandbytes":
            linear.weight = Int8Params(torch.zeros(80, 48, dtype=torch.int8), requires_grad=False)
        case "int8":
            linear.weight = nn.Parameter(torch.zeros(80, 48, dtype=torch.int8), requires_grad=False)
        case "float8":
            linear.weight = nn.Parameter(linear.weight.to(torch.float8_e4m3fn), requires_grad=False)
        case "parametrised":
            nn.utils.parametrizations.weight_norm(linear)
        case "adapted":
            model.model.layers[1].mlp.up_proj = nn.Sequential(linear)
        case "dropout":
            return build_model("llama", dtype=torch.float32, attention_dropout=0.1).train()
        case "another architecture":
            model.config.model_type = "gpt2"
        case "NaN":
            linear.weight[0, 0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("name", ArgumentError, "AutoModelForCausalLM.from_pretrained; got str"),
        ("part", ArgumentError, "got ModuleList"),
        ("wrapped", ArgumentError, r"got DataParallel: give the model inside it"),
        ("compiled", ArgumentError, "call sparsify before torch.compile"),
        ("headless", ArgumentError, "LlamaModel without .*AutoModelForCausalLM"),
        ("meta", ArgumentError, "embed_tokens.weight is on the meta device"),
        ("offloaded", ArgumentError, r"layers\.1\.mlp\.up_proj\.weight is on the meta device.*device_map"),
        ("quantised", ArgumentError, "quantised.*dequantize"),
        ("quantised by its configuration", ArgumentError, "quantised.*dequantize"),
        ("bitsandbytes", ArchitectureError, r"layers\.1\.mlp\.up_proj\.weight is a Int8Params.*without quantisation"),
        ("int8", ArgumentError, r"quantised.*up_proj\.weight is torch\.int8"),
        ("float8", ArgumentError, r"up_proj\.weight is torch\.float8_e4m3fn"),
        ("parametrised", ArchitectureError, r"expected"),
        ("adapted", ArchitectureError, "up_proj is a Sequential, expected nn.Linear"),
        ("dropout", ArgumentError, r"training mode.*call model\.eval\(\)"),
        ("another architecture", ArchitectureError, "'gpt2' is not supported"),
        ("NaN", CalibrationError, "NaN"),
    ],
)
def test_what_is_wrong_with_a_model_is_said(name: str, kind: type[Exception], message: str, tokens: Tensor) -> None:
    with pytest.raises(kind, match=message):
        sparsify(changed(name), tokens, sparsity=0.4, method="larosa/paper")


def test_a_model_that_trains_without_dropout_is_none_of_our_business(tokens: Tensor) -> None:
    model = build_model("llama", dtype=torch.float32).train()
    with sparsify(model, tokens, sparsity=0.4, method="larosa/paper"):
        assert model.training


def test_a_sparse_model_is_refused_before_it_is_calibrated(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("llama", dtype=torch.float32)
    with sparsify(model, tokens, sparsity=0.4, method="larosa/paper"):
        monkeypatch.setattr("larosa.api.sparsify.Calibrator", None)
        with pytest.raises(PlanError, match="sparse already"):
            sparsify(model, tokens, sparsity=0.4, method="larosa/paper")
