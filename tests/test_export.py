"""An export of every method and form is the same model to the bit, wherever its folder is."""

# ruff: noqa: F811  # fixtures

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_quantization import cache, config  # noqa: F401
from test_sparsify import CASES, tuned_shortly
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    ByT5Tokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import larosa
from conftest import build_model
from larosa.api.settings import choices
from larosa.exports.folder import TENSORS
from larosa.quantization import external
from larosa.quantization.apply import quantise

ROTATED = {"method": "larosa/paper", "settings": {"method.granularity": "sublayer"}}
MORE: list[dict[str, Any]] = [
    {"method": "larosa/paper", "settings": {"method.granularity": "group", "method.group_size": 2}},
    {"method": "larosa/paper", "settings": {"method.ties": "keep", "method.rounding": "down"}},
    {"method": "larosa/official", "settings": {"method.granularity": "sublayer"}},
    *({"method": "larosa/block_diagonal", "settings": {"method.block_size": 16, "method.transform_dtype": dtype}}
      for dtype in ("model", "int8")),
    {"method": "larosa/output_aware", "settings": {"method.selector": "threshold"}},
]  # fmt: skip


def sparse(kind: str, tokens: torch.Tensor, case: dict[str, Any], **more: Any) -> PreTrainedModel:
    model = build_model(kind, **{"dtype": torch.float32, **more})
    larosa.sparsify(model, tokens, sparsity=0.3, **tuned_shortly(case))
    return model


def moved(model: PreTrainedModel, tmp_path: Path, **more: Any) -> Path:
    """An export, away from where it was written."""
    first = larosa.export(model, tmp_path / "first", weights="copy", tokenizer=ByT5Tokenizer(), **more)
    (tmp_path / "elsewhere").mkdir()
    return Path(shutil.move(first, tmp_path / "elsewhere" / "export"))


def logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens).logits


def check_equal(model: PreTrainedModel, loaded: PreTrainedModel, tokens: torch.Tensor) -> None:
    assert type(loaded) is type(model)
    handle, again = larosa.handle_of(model), larosa.handle_of(loaded)
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))
    with handle.level_zero(), again.level_zero():
        assert torch.equal(logits(loaded, tokens), logits(model, tokens))
    assert again.plan.method == handle.plan.method
    assert again.plan.levels == handle.plan.levels
    assert again.adapter_bytes == handle.adapter_bytes
    handle.remove()
    again.remove()
    assert torch.equal(logits(loaded, tokens), logits(model, tokens))


@pytest.mark.parametrize("case", [case for case in CASES if "method" in case] + MORE, ids=str)
def test_every_method_and_form(case: dict[str, Any], tokens: torch.Tensor, tmp_path: Path) -> None:
    model = sparse("llama", tokens, case, hidden_size=64, num_attention_heads=4)
    check_equal(model, larosa.load(moved(model, tmp_path), device="cpu"), tokens)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("larosa/paper", torch.float64),
        ("larosa/learned", torch.bfloat16),
        ("larosa", torch.bfloat16),
        ("larosa/official", torch.bfloat16),
        ("r_sparse", torch.bfloat16),
        ("wina/transform", torch.float64),
    ],
    ids=str,
)
def test_tied_biased_models_in_other_precisions(
    name: str, dtype: torch.dtype, tokens: torch.Tensor, tmp_path: Path
) -> None:
    model = sparse("qwen2", tokens, {"method": name}, tied=True, dtype=dtype)
    check_equal(model, larosa.load(moved(model, tmp_path), device="cpu"), tokens)


def rounded_elsewhere(weights: list[torch.Tensor], inputs: list[torch.Tensor], quantizer: str) -> list[torch.Tensor]:
    """In the place of neural-compressor: 4 bits with a zero point per row, which no scale alone represents."""
    found = []
    for weight in weights:
        low, step = weight.amin(1, keepdim=True), (weight.amax(1, keepdim=True) - weight.amin(1, keepdim=True)) / 15
        found.append(((weight - low) / step).round() * step + low)
    return found


@pytest.mark.parametrize(
    ("name", "choice"),
    [
        *(("larosa/paper", choice) for choice in choices("quantization") if choice != "none"),
        ("larosa", "w4_rtn"),
        ("teal", "w4_rtn_in"),
    ],
)
def test_quantised_weights_are_loaded_and_not_rounded_again(
    name: str,
    choice: str,
    tokens: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cache: Path,
) -> None:
    monkeypatch.setattr(external, "rounded", rounded_elsewhere)
    monkeypatch.setattr(external, "check_installed", lambda _: None)
    monkeypatch.setattr(external, "library_version", lambda: "none")
    case = ROTATED if name == "larosa/paper" else {"method": name}
    model = sparse("llama", tokens, case, tied=True)
    handle = larosa.handle_of(model)
    settings = config(choice, head="w8", adapters="w8" if name == "larosa/paper" else "none")
    quantise(model, handle, settings, tokens)
    folder = moved(model, tmp_path)
    for function in ("quantised", "rounded", "fed_back"):
        for module in (external, __import__("larosa.quantization.apply", fromlist=["_"])):
            monkeypatch.setattr(module, function, partial(pytest.fail, "rounded again"), raising=False)
    loaded = larosa.load(folder, device="cpu")
    again = larosa.handle_of(loaded)
    assert again.quantization == settings
    assert again.quantised.keys() == handle.quantised.keys()
    for key, matrix in handle.quantised.items():
        assert torch.equal(again.quantised[key].qweight, matrix.qweight)
        assert torch.equal(again.quantised[key].scale, matrix.scale)
    assert again.quantised_head is not None
    if name == "teal":
        assert (folder / TENSORS).stat().st_size < 0.25 * sum(p.nbytes for p in handle.dense_weights().values())
    check_equal(model, loaded, tokens)


@pytest.mark.parametrize("policy", choices("token_policy"))
def test_generation_follows_the_token_policy(policy: str, tokens: torch.Tensor, tmp_path: Path) -> None:
    model = sparse("qwen3", tokens, {"method": "larosa/paper", "token_policy": policy})
    loaded = larosa.load(moved(model, tmp_path), device="cpu")
    settings = {"max_new_tokens": 12, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    one, other = model.generate(tokens[:1, :9], **settings), loaded.generate(tokens[:1, :9], **settings)
    assert torch.equal(one.sequences, other.sequences)
    assert all(torch.equal(a, b) for a, b in zip(one.logits, other.logits, strict=True))


def test_the_implementation_of_attention_is_kept(tokens: torch.Tensor, tmp_path: Path) -> None:
    model = sparse("llama", tokens, {"method": "magnitude"})
    model.set_attn_implementation("eager")
    loaded = larosa.load(moved(model, tmp_path), device="cpu")
    assert loaded.config._attn_implementation == "eager"
    check_equal(model, loaded, tokens)


def test_auto_classes_give_the_sparse_model(tokens: torch.Tensor, tmp_path: Path) -> None:
    model = sparse("llama", tokens, {"method": "larosa/paper"})
    folder = moved(model, tmp_path)
    assert AutoConfig.from_pretrained(folder).model_type == "larosa"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("sparse").input_ids == larosa.load_tokenizer(folder)("sparse").input_ids
    loaded = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto", device_map={"": "cpu"})
    check_equal(model, loaded, tokens)
    for given, message in (
        ({"dtype": torch.float16}, "made in float32"),
        ({"attn_implementation": "eager"}, "does not take attn_implementation"),
        ({"device_map": {"model": 0}}, "not a map of modules"),
    ):
        with pytest.raises(larosa.ArgumentError, match=message):
            AutoModelForCausalLM.from_pretrained(folder, **given)


def test_the_dense_model_by_reference(tokens: torch.Tensor, tmp_path: Path) -> None:
    """A model that was loaded from a folder names it; the export finds it, or is told where it is now."""
    dense = build_model("llama", torch.float32)
    dense.save_pretrained(tmp_path / "dense")
    ByT5Tokenizer().save_pretrained(tmp_path / "dense")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense").eval()
    larosa.sparsify(model, tokens, sparsity=0.4, method="larosa/paper")
    folder = larosa.export(model, tmp_path / "export", tokenizer=ByT5Tokenizer())
    assert not (folder / "dense").exists()
    assert torch.equal(logits(larosa.load(folder, device="cpu"), tokens), logits(model, tokens))
    (tmp_path / "dense").rename(tmp_path / "moved")
    with pytest.raises(larosa.ExportError, match=r"no such folder.*base=PATH"):
        larosa.load(folder)
    loaded = larosa.load(folder, base=tmp_path / "moved", device="cpu")
    assert larosa.load_tokenizer(folder, base=tmp_path / "moved")("a").input_ids
    words = Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "moved")
    with pytest.raises(larosa.ExportError, match="its tokens are others"):
        larosa.load_tokenizer(folder, base=tmp_path / "moved")
    check_equal(model, loaded, tokens)


def test_a_model_of_unknown_or_changed_origin_is_exported_as_a_copy(tokens: torch.Tensor, tmp_path: Path) -> None:
    model = sparse("llama", tokens, {"method": "teal"})
    with pytest.raises(larosa.ExportError, match="weights='copy'"):
        larosa.export(model, tmp_path / "a")
    with pytest.raises(larosa.ExportError, match="needs tokenizer"):
        larosa.export(model, tmp_path / "a", weights="copy")
    dense = build_model("llama", torch.float32, seed=1)
    dense.save_pretrained(tmp_path / "dense")
    ByT5Tokenizer().save_pretrained(tmp_path / "dense")
    model.config.name_or_path = str(tmp_path / "dense")
    with pytest.raises(larosa.ExportError, match=r"another hash.*\n.*weights='copy'"):
        larosa.export(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    larosa.handle_of(model).discard()
    with pytest.raises(larosa.LarosaError, match="discarded"):
        larosa.export(model, tmp_path / "a", weights="copy", tokenizer=ByT5Tokenizer())
    with pytest.raises(larosa.LarosaError, match="dense"):
        larosa.export(dense, tmp_path / "a")


def test_saving_is_refused_and_names_the_export(tokens: torch.Tensor, tmp_path: Path) -> None:
    model = sparse("llama", tokens, {"method": "magnitude"})
    with pytest.raises(larosa.LarosaError, match=r"larosa\.export.*larosa export"):
        model.save_pretrained(tmp_path)
