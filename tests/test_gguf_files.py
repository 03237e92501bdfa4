"""GGUF files of one's own as `model=local model.path=FILE.gguf`: shape, precision, identity, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from test_config import parse
from test_gguf import write
from test_pipeline import overrides  # noqa: F401  # a fixture
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from conftest import build_model
from larosa import models
from larosa.experiment.pipeline import run
from larosa.models.gguf_config import GgufError, read_config
from larosa.models.resolve import resolved
from larosa.models.shape import ModelError

ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 2}
MODELS: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 32, "tied": True},
    "llama": {"head_dim": 16, "tied": True, "rope_parameters": ROPE, "max_position_embeddings": 131072},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def file_of(path: Path, kind: str = "qwen3", **more: Any) -> tuple[PreTrainedModel, Path]:
    """A model whose weights are what the file says, and the file."""
    model = build_model(kind, torch.float32, **SIZES, **MODELS[kind])
    tensors = {"rope_freqs.weight": divisors(model)} if kind == "llama" else {}
    return model, write(path, model, pre="llama-bpe" if kind == "llama" else "qwen2", **{"tensors": tensors, **more})


def divisors(model: PreTrainedModel) -> Any:
    """What llama.cpp divides each frequency by, as its converter writes it."""
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, torch.device("cpu"))
    width = model.config.head_dim
    return (500000.0 ** (-torch.arange(0, width, 2) / width) / scaled).numpy().astype(np.float32)


def local(path: Path, *words: str) -> Any:
    return resolved(parse("model=local", f"model.path={path}", "model.device=cpu", *words)).model


@pytest.mark.parametrize("kind", MODELS)
def test_a_file_is_all_that_is_needed(kind: str, tmp_path: Path, tokens: torch.Tensor, cache: Path) -> None:
    expected, path = file_of(tmp_path / "tiny.Q8_0.gguf", kind)
    config = local(path)
    assert (config.name, config.dtype, config.shape["model_type"]) == ("tiny.Q8_0", "float32", kind)
    assert not list(cache.glob("models/*"))  # the shape is known before anything is converted
    shape = models.model_config(config)
    keys = {*SIZES, "vocab_size", "rms_norm_eps", "rope_parameters", "tie_word_embeddings"} | MODELS[kind].keys()
    for key in keys - {"tied"}:
        assert getattr(shape, key) == getattr(expected.config, key), key
    model = models.load_model(config, seed=0)
    assert torch.equal(model(tokens).logits, expected(tokens).logits)
    assert models.load_tokenizer(config)("ll").input_ids
    (folder,) = (path for path in cache.glob("models/gguf-*") if path.is_dir())
    before = (folder / "model.safetensors").stat().st_mtime_ns
    models.load_model(config, seed=0)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_scaled_rotary_embeddings_are_not_lost(tmp_path: Path) -> None:
    """Llama 3.2's file says them by a tensor alone, which transformers leaves out."""
    expected, path = file_of(tmp_path / "a.gguf", "llama")
    ids = torch.arange(2, 202)[None]
    found = models.load_model(local(path), seed=0)(ids).logits
    assert torch.equal(found, expected(ids).logits)
    plain = build_model("llama", torch.float32, **SIZES, **{**MODELS["llama"], "rope_parameters": None})
    plain.load_state_dict(expected.state_dict())
    assert not torch.allclose(plain(ids).logits, found, rtol=1e-3)


def test_precision_and_identity(tmp_path: Path, cache: Path) -> None:
    expected, path = file_of(tmp_path / "a.gguf")
    half = models.load_model(local(path, "model.dtype=bfloat16"), seed=0)
    assert all(torch.equal(half.get_parameter(key), value.bfloat16()) for key, value in expected.named_parameters())
    assert models.load_model(local(path, "model.dtype=float64"), seed=0).dtype == torch.float64
    found = models.fingerprint(local(path))
    assert found["source"] == "gguf"
    assert len(found["gguf_sha256"]) == 64
    path.rename(tmp_path / "b.gguf")
    assert models.fingerprint(local(tmp_path / "b.gguf")) == found
    content = bytearray((tmp_path / "b.gguf").read_bytes())
    content[-1] ^= 1
    (tmp_path / "b.gguf").write_bytes(content)
    assert models.fingerprint(local(tmp_path / "b.gguf")) != found


def test_a_run_on_a_file(overrides: list[str], tmp_path: Path) -> None:  # noqa: F811
    _, path = file_of(tmp_path / "own.gguf")
    words = [*overrides, "model=local", f"model.path={path}", "sparsity=0", "method=larosa/paper", "baseline=dense"]
    records = run(parse(*words, "model.dtype=float64"))
    dense, found = (record["metrics"]["perplexity"]["text"]["perplexity"] for record in records.values())
    assert found == pytest.approx(dense, rel=1e-10)
    assert {"name": "own", "source": "gguf"}.items() <= records["dense"]["identity_inputs"]["model"].items()


def edited(path: Path, **fields: Any) -> Path:
    """A file without weights whose fields are as given."""
    writer = GGUFWriter(path, fields.pop("architecture", "llama"))
    for key, value in fields.items():
        {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](
            key.replace("__", "."), value
        )
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "gemma2"}, r"'gemma2'; GGUF files are read of llama, mistral, qwen2, qwen3"),
        ({"split__count": 3}, r"one of 3 parts: join them"),
        ({"llama__block_count": 2}, r"no whole model: it lacks context_length, embedding_length"),
    ],
)
def test_what_is_no_model_that_is_known(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(GgufError, match=message):
        local(edited(tmp_path / "a.gguf", **fields))


def test_another_scaling_is_refused(tmp_path: Path) -> None:
    wrong = {"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)}
    _, path = file_of(tmp_path / "a.gguf", "llama", tensors=wrong)
    with pytest.raises(GgufError, match="not the scaling of Llama"):
        read_config(path)
    _, other = file_of(tmp_path / "b.gguf", "qwen2", tensors={})
    assert read_config(other).rope_parameters["rope_type"] == "default"


def test_tensors_that_transformers_leaves_out_are_refused(tmp_path: Path) -> None:
    _, path = file_of(tmp_path / "a.gguf", "qwen2", tensors={"blk.0.attn_sinks.weight": np.ones(4, dtype=np.float32)})
    with pytest.raises(GgufError, match=r"holds \d+ tensors, transformers' qwen2 has \d+ parameters"):
        models.load_model(local(path), 0)


def test_an_unknown_tokenizer_ends_before_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model("qwen2", torch.float32, **SIZES)
    path = write(tmp_path / "a.gguf", model, pre="falcon")
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(GgufError, match="its tokenizer is not known"):
        models.load_model(local(path), 0)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="GGUF file cannot be read"):
        local(tmp_path / "none.gguf")
    file_of(tmp_path / "a.gguf", "qwen2")
    with pytest.raises(ModelError, match=r"no config\.json in it; its GGUF file is read by model\.path=.*a\.gguf"):
        local(tmp_path)


def test_a_named_model_from_a_file(tmp_path: Path) -> None:
    _, path = file_of(tmp_path / "a.gguf", "qwen2")
    with pytest.raises(ModelError, match=r"hidden_size is 64, model\.shape says 3584.*model=local model\.path="):
        models.model_config(parse("model=qwen2.5-7b", f"model.path={path}").model)
