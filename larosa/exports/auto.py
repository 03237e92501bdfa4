"""Exports in AutoConfig, AutoModelForCausalLM and AutoTokenizer of transformers, once larosa is imported.

An export's config.json has the model type `larosa`, which transformers without larosa refuses. A quantiser of a model
type that transformers knows would not be safe: where it does not know the quantiser, it only warns, and loads the rest.

This module is imported while transformers is: what else it needs is imported when an export is loaded.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from transformers.configuration_utils import PretrainedConfig

_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")
_OURS = ("base", "dense_weights_device")
_WITHOUT_EFFECT = {
    "_from_auto", "adapter_kwargs", "cache_dir", "force_download", "local_files_only", "low_cpu_mem_usage",
    "proxies", "revision", "token", "trust_remote_code", "use_safetensors", "weights_only",
}  # fmt: skip
"""Of a local folder of safetensors."""


class LarosaExportConfig(PretrainedConfig):  # type: ignore[no-untyped-call]
    """config.json of an export. The dense model's configuration is in plan/plan.json."""

    model_type = "larosa"


class LarosaForCausalLM:
    """Stands for exports in AutoModelForCausalLM. What it gives is a model of transformers' own class."""

    config_class = LarosaExportConfig

    @classmethod
    def from_pretrained(cls, folder: Any, *_: Any, config: Any = None, **given: Any) -> Any:
        """larosa.load, on the CPU unless `device_map` says otherwise, as transformers does.

        Takes `device_map`, `dtype` where it is the export's, and larosa.load's `base` and `dense_weights_device`.
        Raises ArgumentError for other settings, ExportError as larosa.load.
        """
        from larosa.exports.load import load

        attention = getattr(config, "_attn_implementation", None)  # transformers moves the setting there
        _check(Path(folder), {**given, "attn_implementation": attention})
        device_map = given.get("device_map")
        placed = {"device_map": device_map} if device_map in _SPREAD else {"device": _device(device_map)}
        return load(folder, **placed, **{key: given[key] for key in _OURS if key in given})


class LarosaTokenizer:
    """Stands for the tokenizers of exports in AutoTokenizer."""

    @classmethod
    def from_pretrained(cls, folder: Any, *_: Any, **given: Any) -> Any:
        """larosa.load_tokenizer."""
        from larosa.exports.load import load_tokenizer

        return load_tokenizer(folder, base=given.get("base"))


def register(module: ModuleType) -> None:
    """Register in one of transformers' three modules of Auto classes, which has just been imported."""
    match module.__name__.rpartition(".")[2]:
        case "configuration_auto":
            module.AutoConfig.register(LarosaExportConfig.model_type, LarosaExportConfig, exist_ok=True)
        case "modeling_auto":
            module.AutoModelForCausalLM.register(LarosaExportConfig, LarosaForCausalLM, exist_ok=True)
        case "tokenization_auto":
            module.AutoTokenizer.register(LarosaExportConfig, LarosaTokenizer, exist_ok=True)


def _check(folder: Path, given: dict[str, Any]) -> None:
    """Raise ArgumentError for settings that an export does not take."""
    from larosa.errors import ArgumentError
    from larosa.exports.load import read

    has = read(folder).base.model.dtype
    for key in ("dtype", "torch_dtype"):
        asked = given.get(key)
        if asked is not None and str(asked).removeprefix("torch.") not in ("auto", has):
            raise ArgumentError(
                f"{key}={asked}: the export {folder} was made in {has}; leave {key} out, or export again"
            )
    others = {key for key, value in given.items() if value is not None} - _WITHOUT_EFFECT - set(_OURS)
    others -= {"device_map", "dtype", "torch_dtype"}
    if others:
        raise ArgumentError(f"the export {folder} does not take {', '.join(sorted(others))}: leave it out")


def _device(device_map: Any) -> str:
    """The one device of a transformers device map. Raises ArgumentError."""
    from larosa.errors import ArgumentError

    if isinstance(device_map, dict):
        if set(device_map) != {""}:
            raise ArgumentError(f"an export takes device_map={', '.join(_SPREAD)} or one device, not a map of modules")
        device_map = device_map[""]
    if isinstance(device_map, int):
        return f"cuda:{device_map}"
    return "cpu" if device_map is None else str(device_map)
