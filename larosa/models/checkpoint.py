"""A folder in transformers' layout: what keeps it from being loaded, found before weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig

from larosa.records.disk import read_object

INDEX = "model.safetensors.index.json"
SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""JSON files that transformers reads where they are there."""
READ = ("F64", "F32", "F16", "BF16")
"""safetensors' names of the number formats that a weight may have."""
OWN_QUANTISATION = ("quantization_config", "compression_config", "quantization")
"""Where config.json says that weights are quantised: transformers, older compressed-tensors, MLX."""
QUANTISERS_FILES = ("quantize_config.json", "quant_config.json")
"""Where older versions of AutoGPTQ and AutoAWQ say it."""
TAKEN = (
    "larosa reads weights in bfloat16, float16, float32 or float64, because it ranks and rotates them. Take the "
    "model that this one was made from; quantization=w4_gptq and its like (conf/quantization) quantise it here"
)


def problem(folder: Path) -> str | None:
    """What a folder lacks or what is damaged in it, in words; None if it can be loaded."""
    try:
        return _settings(folder) or _weights(folder) or _tokenizer(folder)
    except OSError as error:
        return f"{error.filename or folder} cannot be read: {error.strerror or error}"


def is_byte_tokenizer(folder: Path) -> bool:
    """Whether a folder was saved with the byte tokenizer of random models, which has no tokenizer.json."""
    try:
        return read_object(folder / "tokenizer_config.json").get("tokenizer_class") == "ByT5Tokenizer"
    except (OSError, ValueError):
        return False


def quantised(config: PretrainedConfig) -> str | None:
    """How the weights of `config` are quantised already, in words; None if they are not."""
    for name in OWN_QUANTISATION:
        entry: Any = getattr(config, name, None)
        if entry:
            return f"its config.json has a {name} ({_described(entry)})"
    return None


def _described(entry: Any) -> str:
    settings = entry if isinstance(entry, Mapping) else getattr(entry, "to_dict", dict)()
    method = settings.get("quant_method") or settings.get("format") or "bitsandbytes"
    names = ("quant_type", "fmt", "bits", "w_bit", "load_in_4bit", "load_in_8bit", "group_size", "weight_block_size")
    told = [f"{name} {settings[name]}" for name in names if settings.get(name)]
    return ", ".join([str(getattr(method, "value", method)), *told])


def _settings(folder: Path) -> str | None:
    for name in SETTINGS:
        try:
            read_object(folder / name)
        except FileNotFoundError:
            continue
        except ValueError as error:
            return f"{name} is damaged ({error})"
    for name in QUANTISERS_FILES:
        if (folder / name).exists():
            return f"its weights are quantised already (it has a {name}); {TAKEN}"
    return None


def _weights(folder: Path) -> str | None:
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    if (folder / INDEX).exists():
        try:
            files = sorted({str(shard) for shard in read_object(folder / INDEX)["weight_map"].values()})
        except (ValueError, KeyError, AttributeError) as error:
            return f"{INDEX} is damaged ({error})"
        absent = [shard for shard in files if not (folder / shard).exists()]
        if absent:
            return f"{len(absent)} of {len(files)} weight files are missing, the first is {absent[0]}"
    if not files:
        pickles = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        others = "pickled weights" if pickles else "GGUF file" if any(folder.glob("*.gguf")) else None
        hint = f"; its {others} are not read, convert them to safetensors" if others else ""
        return f"expected at least one *.safetensors file, found none{hint}"
    return next(filter(None, (_weight_file(folder / name) for name in files)), None)


def _weight_file(path: Path) -> str | None:
    with path.open("rb"):  # says what is wrong where safetensors says "No such file"
        pass
    try:
        with safe_open(path, "pt") as held:
            formats = {name: held.get_slice(name).get_dtype() for name in held.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError as error:
        return f"{path.name} cannot be read as safetensors ({error}): it is damaged or cut off, fetch it again"
    for name, held_as in formats.items():
        if name.endswith("weight") and held_as not in READ:
            return f"its weights are quantised already ({name} in {path.name} is {held_as}); {TAKEN}"
    return None


def _tokenizer(folder: Path) -> str | None:
    path = folder / "tokenizer.json"
    if is_byte_tokenizer(folder):
        return None
    if not path.exists():
        return "expected the tokenizer's tokenizer.json, found none"
    try:
        read_object(path)
    except ValueError as error:
        return f"tokenizer.json is damaged ({error})"
    return None
