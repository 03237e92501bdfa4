"""The transformers configuration of a GGUF file, from its metadata and the names of its tensors.

transformers reads it too, but leaves out what changes the model: a head width apart from width / heads, the scaling of
rotary embeddings (Llama 3.1 and 3.2 keep it as a tensor) and biases.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from larosa.errors import LarosaError

KNOWN = ("llama", "mistral", "qwen2", "qwen3")
"""GGUF's `general.architecture` of models that transformers can dequantise and larosa runs."""
ROPE_FREQUENCIES = "rope_freqs.weight"
_KEYS = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Of every released Llama 3.1 and 3.2; only the factor differs."""


class GgufError(LarosaError):
    """A GGUF file that cannot be read or whose model or tokenizer is not known."""


def read_config(gguf: Path) -> PretrainedConfig:
    """The configuration of the model in a GGUF file; its dtype is None where weights are quantised.

    Reads no weights. Raises GgufError for a damaged file, a part of a split one, an unknown architecture, or a scaling
    of rotary embeddings that is not known.
    """
    status = gguf.stat()
    return _read(gguf, status.st_size, status.st_mtime_ns)


def metadata(gguf: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a GGUF file, and its tensors by name, read on access. Raises GgufError.

    Reading a large vocabulary takes the library seconds, so the last file is kept.
    """
    status = gguf.stat()
    return _metadata(gguf, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _metadata(gguf: Path, _size: int, _time: int) -> tuple[dict[str, Any], dict[str, Any]]:
    from gguf import GGUFReader  # here, so that machines without gguf can load converted models

    try:
        reader = GGUFReader(gguf)
    except (ValueError, IndexError, KeyError) as error:  # the library has no error for it
        raise GgufError(f"{gguf} cannot be read as GGUF ({error}): it is damaged or another file") from error
    return reader.fields, {tensor.name: tensor for tensor in reader.tensors}


@functools.lru_cache(maxsize=8)
def _read(gguf: Path, _size: int, _time: int) -> PretrainedConfig:
    fields, tensors = metadata(gguf)

    def value(key: str, default: Any = None) -> Any:
        return fields[key].contents() if key in fields else default

    kind = str(value("general.architecture"))
    if kind not in KNOWN:
        raise GgufError(
            f"{gguf}: general.architecture is {kind!r}; GGUF files are read of {', '.join(KNOWN)}. Other models are "
            "read from their folder of safetensors"
        )
    if value("split.count", 1) > 1:
        raise GgufError(f"{gguf} is one of {value('split.count')} parts: join them with llama-gguf-split --merge")
    absent = [key for key in (*_KEYS.values(), "attention.layer_norm_rms_epsilon") if f"{kind}.{key}" not in fields]
    if absent or "token_embd.weight" not in tensors:
        raise GgufError(f"{gguf} holds no whole model: it lacks {', '.join(absent) or 'token_embd.weight'}")
    head_dim = value(f"{kind}.attention.key_length", value(f"{kind}.rope.dimension_count"))
    settings: dict[str, Any] = {name: value(f"{kind}.{key}") for name, key in _KEYS.items()}
    settings["head_dim"] = head_dim or settings["hidden_size"] // settings["num_attention_heads"]
    settings["vocab_size"] = int(tensors["token_embd.weight"].shape[1])
    settings["rms_norm_eps"] = _shortest(value(f"{kind}.attention.layer_norm_rms_epsilon"))
    settings["tie_word_embeddings"] = "output.weight" not in tensors
    settings["rope_parameters"] = {"rope_type": "default", "rope_theta": value(f"{kind}.rope.freq_base", 10000.0)}
    for role, name in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        settings[f"{role}_token_id"] = value(f"tokenizer.ggml.{name}_token_id")
    if kind != "qwen2":
        settings["attention_bias"] = "blk.0.attn_q.bias" in tensors
    scaling = value(f"{kind}.rope.scaling.type", "none")
    if scaling != "none":
        raise GgufError(f"{gguf}: rope.scaling.type is {scaling}, which is not known of GGUF files: take safetensors")
    config: PretrainedConfig = AutoConfig.for_model(kind, **settings)
    if ROPE_FREQUENCIES in tensors:
        _scale_rotary(gguf, config, torch.tensor(tensors[ROPE_FREQUENCIES].data).float())
    config.dtype = _dtype({tensor.tensor_type.name for tensor in tensors.values() if len(tensor.shape) > 1})
    return config


def _shortest(number: float) -> float:
    """GGUF's float32 as it was written: 9.9999997e-06 is 1e-05."""
    return float(f"{number:.6g}")


def _scale_rotary(gguf: Path, config: PretrainedConfig, divisors: Tensor) -> None:
    """Set `rope_parameters` to the llama3 scaling whose divisors of each frequency the file holds."""
    plain = config.rope_parameters
    config.rope_parameters = {**plain, **_LLAMA3, "rope_type": "llama3", "factor": float(divisors.max())}
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    width = int(config.head_dim)
    exact = plain["rope_theta"] ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    if divisors.shape != scaled.shape or not torch.allclose(exact / scaled, divisors.double(), rtol=1e-3):
        raise GgufError(
            f"{gguf}: its {ROPE_FREQUENCIES} is not the scaling of Llama 3.1 and 3.2, the only one that is known of "
            "GGUF files: take the model's folder of safetensors"
        )


def _dtype(types: set[str]) -> torch.dtype | None:
    only = types.pop() if len(types) == 1 else ""
    return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(only)
