"""What the settings leave to the model itself: the shape and the precision that its config.json says.

Done once, when the settings are read, so that records, identities and tables hold what was used.
"""

from __future__ import annotations

from typing import Any

from larosa.config.model import ModelConfig
from larosa.config.run import RunConfig
from larosa.models.load import resolve_device
from larosa.models.shape import described
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
        pretrained = read_config(ensure_available(config), config)
    else:
        pretrained = model_config(config)
    update: dict[str, Any] = {}
    if config.shape is None:
        update["shape"] = described(pretrained)
    if config.dtype == "auto":
        update["dtype"] = _precision(pretrained.dtype, config.device)
    return config.model_copy(update=update)


def _precision(stored: object, device: str) -> str:
    name = str(stored).removeprefix("torch.")
    if name in _PRECISIONS:
        return name
    return "bfloat16" if resolve_device(device).type == "cuda" else "float32"
