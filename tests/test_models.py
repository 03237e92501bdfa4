"""Loading: random weights, folders, precision, tokenizers, devices; offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, PreTrainedModel

from larosa import models
from larosa.config.run import ModelConfig
from larosa.models import load
from larosa.models.sources import ModelError

CONF = Path(__file__).parents[1] / "conf" / "model"
PARAMETERS = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "mistral-7b": 7_248_023_552,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-72b": 72_706_203_648,
    "qwen2.5-coder-0.5b": 630_167_424,
    "qwen2.5-coder-1.5b": 1_777_088_000,
    "r1-distill-llama-8b": 8_030_261_248,
    "r1-distill-qwen-7b": 7_615_616_512,
    "smollm2-135m": 134_515_008,
    # 2 * 384*64 + 64 + 3 * (2*64*64 + 2*64*32 + 3*64*160 + 2*64); qwen2: once 384*64, biases 64 + 2*32
    "tiny-llama": 178_624,
    "tiny-mistral": 178_624,
    "tiny-qwen2": 154_432,
}
TINY = [name for name in PARAMETERS if name.startswith("tiny")]


def conf(name: str, **changes: Any) -> ModelConfig:
    tree = yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8"))
    return ModelConfig(**{**tree, **changes})


def tiny(name: str = "tiny-llama", **changes: Any) -> ModelConfig:
    return conf(name, **{"device": "cpu", **changes})


def saved(folder: Path, name: str = "tiny-llama") -> PreTrainedModel:
    model = models.load_model(tiny(name), seed=5)
    model.save_pretrained(folder)
    models.load_tokenizer(tiny(name)).save_pretrained(folder)
    return model


def same_weights(left: PreTrainedModel, right: PreTrainedModel) -> bool:
    a, b = left.state_dict(), right.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", TINY)
def test_random_model_is_seeded_frozen_and_leaves_the_global_state(name: str) -> None:
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    first = models.load_model(tiny(name), seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert same_weights(first, models.load_model(tiny(name), seed=1))
    assert not same_weights(first, models.load_model(tiny(name), seed=2))
    assert not first.training
    assert not any(parameter.requires_grad for parameter in first.parameters())


@pytest.mark.parametrize("name", TINY)
def test_random_gammas_and_biases_are_not_trivial(name: str) -> None:
    model = models.load_model(tiny(name), seed=1)
    vectors = {key: value for key, value in model.named_parameters() if value.ndim == 1}
    biases = [value for key, value in vectors.items() if key.endswith("bias")]
    gammas = [value for key, value in vectors.items() if not key.endswith("bias")]
    assert len(gammas) == 7
    assert len(biases) == (9 if name == "tiny-qwen2" else 0)
    assert all(value.min() >= 0.5 and value.max() <= 1.5 and value.std() > 0.1 for value in gammas)
    assert all(0.005 < value.std() < 0.05 for value in biases)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_random_model_has_its_dtype_but_float32_rotary_frequencies(dtype: str) -> None:
    model = models.load_model(tiny(dtype=dtype), seed=0)
    wanted = getattr(torch, dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    inverse = model.model.rotary_emb.inv_freq
    assert inverse.dtype == torch.float32
    expected = 10000.0 ** (-torch.arange(0, 16, 2, dtype=torch.float32) / 16)
    torch.testing.assert_close(inverse, expected)
    assert torch.isfinite(model(torch.arange(12)[None]).logits).all()


def test_tied_embeddings_stay_tied() -> None:
    tied, untied = (models.load_model(tiny(name), seed=0) for name in ("tiny-qwen2", "tiny-llama"))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight


def test_byte_tokenizer_round_trip_and_small_vocabulary() -> None:
    text = "Grüße, 42\n"
    tokenizer = models.load_tokenizer(tiny())
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) == len(text.encode())
    assert max(ids) < 384
    assert tokenizer.decode(ids) == text
    config = tiny()
    with pytest.raises(ModelError, match="vocab_size=300"):
        models.load_tokenizer(config.model_copy(update={"shape": {**config.shape, "vocab_size": 300}}))


@pytest.mark.parametrize("name", TINY)
def test_local_folder_round_trip(tmp_path: Path, name: str) -> None:
    model = saved(tmp_path, name)
    config = tiny(name, path=str(tmp_path))
    assert models.ensure_available(config) == tmp_path
    loaded = models.load_model(config, seed=99)
    assert same_weights(model, loaded)
    assert not loaded.training
    tokens = torch.arange(10)[None]
    assert torch.equal(model(tokens).logits, loaded(tokens).logits)
    ids = models.load_tokenizer(config)("abc").input_ids
    assert ids == models.load_tokenizer(tiny(name))("abc").input_ids


def test_local_folder_is_read_in_another_dtype(tmp_path: Path) -> None:
    model = saved(tmp_path)
    loaded = models.load_model(tiny(path=str(tmp_path), dtype="bfloat16"), seed=0)
    for key, value in model.named_parameters():
        assert torch.equal(loaded.get_parameter(key), value.bfloat16())
    assert torch.equal(loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


@pytest.mark.parametrize("name", TINY)
def test_published_tokenizer_is_read_as_it_stands(tmp_path: Path, name: str) -> None:
    """AutoTokenizer of transformers 5 would replace the pre-tokenizer or forget the first token."""
    saved(tmp_path, name)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("1", "2")]
    ids = {token: i for i, token in enumerate(["<s>", *letters, "ĊĊ", "12"])}
    backend = Tokenizer(BPE(vocab=ids, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = models.load_tokenizer(tiny(name, path=str(tmp_path)))
    tokens = tokenizer("a b\n\n12").input_ids
    assert tokenizer.convert_ids_to_tokens(tokens) == ["<s>", "a", "Ġ", "b", "ĊĊ", "1", "2"]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == "a b\n\n12"


def test_devices() -> None:
    assert models.resolve_device("cpu") == torch.device("cpu")
    for name in ("cuda:99", "gpu", "meta"):
        with pytest.raises(ModelError, match=r"model\.device="):
            models.resolve_device(name)
    with pytest.raises(ModelError, match="device_map=null"):
        models.load_model(tiny(device_map="auto"), seed=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_device_map_without_gpu_leaves_the_model_on_the_cpu(tmp_path: Path) -> None:
    saved(tmp_path)
    assert models.load_model(tiny(path=str(tmp_path), device_map="auto"), seed=0).device.type == "cpu"


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_weights_that_are_incomplete_are_refused(tmp_path: Path, damage: str) -> None:
    saved(tmp_path)
    path = tmp_path / "model.safetensors"
    if damage == "missing":
        tensors = load_file(path)
        del tensors["model.layers.1.mlp.down_proj.weight"]
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(
        ModelError, match=r"layers\.1\.mlp\.down_proj\.weight" if damage == "missing" else "cannot be read"
    ):
        models.load_model(tiny(path=str(tmp_path)), seed=0)


def test_too_big_for_the_gpu_is_refused_before_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    config = conf("llama2-7b")
    shape = models.model_config(config)
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(load, "_free_bytes", lambda device: 2 * PARAMETERS["llama2-7b"] - 1)
    with pytest.raises(ModelError, match=r"13\.5 GB of weights in bfloat16, and 13\.5 GB are free on cuda:0"):
        load._refuse_too_big(config, shape, gpu)
    monkeypatch.setattr(load, "_free_bytes", lambda device: 2 * PARAMETERS["llama2-7b"])
    load._refuse_too_big(config, shape, gpu)


def test_offloaded_layers_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = saved(tmp_path)
    config = tiny(path=str(tmp_path), device_map="auto")
    complete = {"missing_keys": set(), "mismatched_keys": set()}
    model.hf_device_map = {"model.embed_tokens": 0, "model.layers.0": 0, "lm_head": "cpu"}
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: (model, complete))
    with pytest.raises(ModelError, match=r"\['0', 'cpu'\].*offloaded layers are not supported"):
        load._read(tmp_path, config, models.model_config(config), torch.device("cuda:0"))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["0.5b", "1.5b"])
def test_qwen_from_its_wheels(size: str) -> None:
    """Tokens are those of Qwen2.5's published tokenizer."""
    config = conf(f"qwen2.5-coder-{size}", device="cpu", dtype="bfloat16")
    tokenizer = models.load_tokenizer(config)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (None, "<|im_end|>", "<|endoftext|>")
    assert len(tokenizer) == 151665
    assert tokenizer("Hello world! 2024").input_ids == [9707, 1879, 0, 220, 17, 15, 17, 19]
    code = "def f(x):\n    return x + 12.5  # Grüße 你好\n\n\n"
    assert tokenizer.decode(tokenizer(code).input_ids) == code
    model = models.load_model(config, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[config.name]
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert {key: getattr(model.config, key) for key in config.shape} == config.shape
    prompt = tokenizer("def fibonacci(n):\n    if n < 2:\n        return n\n    return", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert "fibonacci(n" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])


@pytest.mark.slow
def test_smollm2_from_the_wheel() -> None:
    config = conf("smollm2-135m", device="cpu")
    model = models.load_model(config, seed=0)
    tokenizer = models.load_tokenizer(config)
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {key: getattr(model.config, key) for key in config.shape} == config.shape
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (1, 2, 49152)
    assert len(tokenizer.added_tokens_decoder) == 17
    text = "Grüße — 你好, it's €5.00\n\n  indented <|im_start|>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("a\n\n12") == ["a", "ĊĊ", "1", "2"]  # split at digits, as published
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**chat, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, chat["input_ids"].shape[1] :])
