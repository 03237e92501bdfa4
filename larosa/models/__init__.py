"""Which model: its architecture and shape, where its weights come from, loading, precision, weight formats.

The public names are imported on first use: the decoder reads weight formats where pydantic is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from larosa.models.load import load_model, load_tokenizer, resolve_device, resolve_placement
    from larosa.models.sources import ModelError, ensure_available, fingerprint, missing_bytes, model_config

_HOME = {
    "ModelError": "sources",
    "ensure_available": "sources",
    "fingerprint": "sources",
    "load_model": "load",
    "load_tokenizer": "load",
    "missing_bytes": "sources",
    "model_config": "sources",
    "resolve_device": "load",
    "resolve_placement": "load",
}

__all__ = [
    "ModelError",
    "ensure_available",
    "fingerprint",
    "load_model",
    "load_tokenizer",
    "missing_bytes",
    "model_config",
    "resolve_device",
    "resolve_placement",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _HOME:
        return getattr(import_module(f"larosa.models.{_HOME[name]}"), name)
    raise AttributeError(f"module 'larosa.models' has no attribute {name!r}")
