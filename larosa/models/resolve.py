"""What the settings leave to the model itself: the shape and the precision that its config.json says.

Done once, when the settings are read, so that records, identities and tables hold what was used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from larosa.config.model import ModelConfig
from larosa.config.run import RunConfig
from larosa.models.load import resolve_device
from larosa.models.sources import ensure_available, model_config, read_config

_PRECISIONS = ("float64", "float32", "bfloat16", "float16")


def resolved(config: RunConfig) -> RunConfig:
    """The run with the model's own shape where `model.shape` is null and its own precision where `model.dtype` is auto.

    Reads config.json or a GGUF file's metadata, never weights. Raises ModelError, ArchitectureError, and ConfigError
    where the run is not possible at that precision.
    """
    model = resolved_model(config.model)
    return config if model is config.model else config.with_model(model)


def resolved_model(config: ModelConfig) -> ModelConfig:
    """The same of the model's settings alone."""
    if config.shape is not None and config.dtype != "auto":
        return config
    if config.path is None and config.source != "random":
        found = read_config(ensure_available(config), config)
    else:
        found = model_config(config)
    update: dict[str, Any] = {}
    if config.shape is None:
        update["shape"] = described(found)
    if config.dtype == "auto":
        gguf = config.path is not None and Path(config.path).suffix == ".gguf"
        update["dtype"] = _precision(None if gguf else found.dtype, config.device)
    return config.model_copy(update=update)


def described(config: PretrainedConfig) -> dict[str, Any]:
    """A transformers configuration as `model.shape` states it: without what every configuration has in common."""
    common = PretrainedConfig().to_dict()
    own = {key: value for key, value in config.to_dict().items() if key not in common or common[key] != value}
    unshaping = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")
    return {key: value for key, value in own.items() if key not in unshaping} | {"model_type": config.model_type}


def _precision(stored: object, device: str) -> str:
    name = str(stored).removeprefix("torch.")
    if name in _PRECISIONS:
        return name
    return "bfloat16" if resolve_device(device).type == "cuda" else "float32"
