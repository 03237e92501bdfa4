"""Folders that cannot be loaded: what is wrong with each is said before weights are read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_models import saved, tiny
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM

from larosa import models
from larosa.config.run import ModelConfig
from larosa.data.texts import TextError
from larosa.data.tokens import TokenBlock, check_ids
from larosa.models import checkpoint
from larosa.models.sources import ModelError


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    saved(tmp_path)
    return tiny(path=str(tmp_path))


def change(path: Path, **values: Any) -> None:
    tree = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(tree | values))


def refuse_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))


QUANTISED = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4},
    "bitsandbytes": {"load_in_4bit": True},
    "compressed-tensors": {"quant_method": "compressed-tensors", "config_groups": {}},
    "fp8": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4"},
    "a-method-of-next-year": {"quant_method": "a-method-of-next-year"},
}


@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_checkpoints_are_refused(
    method: str, config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_load(monkeypatch)
    change(tmp_path / "config.json", quantization_config=QUANTISED[method])
    for ask in (models.model_config, models.ensure_available, lambda config: models.load_model(config, 0)):
        with pytest.raises(ModelError, match=rf"quantised already.*{method}.*float32.*quantization="):
            ask(config)


@pytest.mark.parametrize("name", ["quantization", "compression_config"])
def test_other_names_of_the_same(name: str, config: ModelConfig, tmp_path: Path) -> None:
    change(tmp_path / "config.json", **{name: {"group_size": 64, "bits": 4}})
    with pytest.raises(ModelError, match=f"quantised already.*{name}.*bits 4"):
        models.model_config(config)


def test_no_quantisation_is_none(config: ModelConfig, tmp_path: Path) -> None:
    change(tmp_path / "config.json", quantization_config=None)
    models.ensure_available(config)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.uint8])
def test_quantised_weights_are_refused_also_where_config_says_nothing(
    dtype: torch.dtype, config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_load(monkeypatch)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].to(dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"quantised already \(model\.layers\.1\.mlp\.up_proj\.weight"):
        models.load_model(config, 0)
    (tmp_path / "quantize_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"quantize_config\.json"):
        models.ensure_available(config)


WRONG = ["", "{", "[]", "null", '"text"', "7"]


@pytest.mark.parametrize("text", WRONG)
@pytest.mark.parametrize("name", [*checkpoint.SETTINGS, checkpoint.INDEX])
def test_a_json_file_that_holds_no_object_is_named(name: str, text: str, config: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=name):
        models.ensure_available(config)


@pytest.mark.parametrize("tree", [{}, {"weight_map": None}, {"weight_map": []}, {"weight_map": {"a": 5}}])
def test_a_wrong_index_is_named(tree: dict[str, Any], config: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / checkpoint.INDEX).write_text(json.dumps(tree))
    with pytest.raises(ModelError, match=r"index\.json is damaged|missing, the first is 5|found none"):
        models.ensure_available(config)


@pytest.mark.parametrize(
    "values", [{"hidden_size": "wide"}, {"hidden_size": None}, {"model_type": 3}, {"num_hidden_layers": []}]
)
def test_settings_of_a_wrong_type(values: dict[str, Any], config: ModelConfig, tmp_path: Path) -> None:
    change(tmp_path / "config.json", **values)
    with pytest.raises(ModelError):
        models.model_config(config)


def test_missing_and_forbidden_are_told_apart(
    config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, true_open = tmp_path / "model.safetensors", Path.open

    def forbidden(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return true_open(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", forbidden)  # a mode would not stop root
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read: Permission denied"):
        models.ensure_available(config)
    path.unlink()
    with pytest.raises(ModelError, match="found none"):
        models.ensure_available(config)
    path.mkdir()
    monkeypatch.undo()
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read: Is a directory"):
        models.ensure_available(config)


@pytest.mark.skipif(os.geteuid() == 0, reason="no mode stops root")
def test_a_file_without_permission(config: ModelConfig, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).chmod(0)
        with pytest.raises(ModelError, match=f"{name}.*Permission denied"):
            models.ensure_available(config)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(value: float, config: ModelConfig, tmp_path: Path) -> None:
    path, name = tmp_path / "model.safetensors", "model.layers.2.self_attn.o_proj.weight"
    tensors = load_file(path)
    tensors[name][3, 5] = value
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"not finite: {name} holds NaN or infinity") as refused:
        models.load_model(config, 0)
    assert "float32" not in str(refused.value)


def test_weights_beyond_float16_are_told_from_damaged_ones(config: ModelConfig, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = 1e6
    save_file(tensors, path, metadata={"format": "pt"})
    models.load_model(config, 0)
    with pytest.raises(ModelError, match=r"model\.norm\.weight.*model\.dtype=bfloat16 or float32"):
        models.load_model(config.model_copy(update={"dtype": "float16"}), 0)


def with_tokenizer(folder: Path, base: int, added: list[str], **settings: str) -> None:
    """A tokenizer of `base` ids, the letters among them, with tokens added behind."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: i for i, token in enumerate(["<s>", *letters, *(f"filler{i}" for i in range(base))][:base])}
    backend = Tokenizer(BPE(vocab=ids, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens(added)
    for name in ("added_tokens.json", "special_tokens_map.json"):  # of the tokenizer that was there
        (folder / name).unlink(missing_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<s>"} | settings))


def test_a_tokenizer_with_more_ids_than_embeddings(config: ModelConfig, tmp_path: Path) -> None:
    with_tokenizer(tmp_path, 384, [])
    models.load_tokenizer(config)
    with_tokenizer(tmp_path, 300, [])  # fewer are common: embeddings are padded to a multiple
    models.load_tokenizer(config)
    with_tokenizer(tmp_path, 390, [])
    with pytest.raises(ModelError, match=r"ids up to 389 \('filler132'\), the model 384 embeddings"):
        models.load_tokenizer(config)


def test_an_added_token_without_an_embedding(
    config: ModelConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A padding token behind the vocabulary is common: no text holds it, but padding must not use it."""
    with_tokenizer(tmp_path, 384, ["<pad>"], pad_token="<pad>")
    tokenizer = models.load_tokenizer(config)
    assert "the last is '<pad>' (384)" in caplog.text
    assert tokenizer.pad_token_id == 0
    ids = torch.tensor([tokenizer("a b<pad>").input_ids])
    with pytest.raises(TextError, match=r"text own holds the token 384 \('<pad>'\).*384 embeddings"):
        check_ids(TokenBlock(ids, "own", 1, 4, ""), tokenizer, 384)
    check_ids(TokenBlock(ids[:, :-1], "own", 1, 3, ""), tokenizer, 384)
    with_tokenizer(tmp_path, 384, ["<bos>"], bos_token="<bos>")
    with pytest.raises(ModelError, match="<bos>"):
        models.load_tokenizer(config)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"model": null}', '{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_is_named(text: str, config: ModelConfig, tmp_path: Path) -> None:
    with_tokenizer(tmp_path, 384, [])
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match="tokenizer"):
        models.load_tokenizer(config)
