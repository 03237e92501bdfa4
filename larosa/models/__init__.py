"""Which model: its architecture and shape, where its weights come from, loading, precision, weight formats.

Names are imported at first use: the decoder takes shapes and formats from this folder where there is no pydantic.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from larosa.models.load import load_model, load_tokenizer, resolve_device, resolve_placement
    from larosa.models.sources import ModelError, ensure_available, fingerprint, model_config

_MODULES = {
    "ModelError": "sources",
    "ensure_available": "sources",
    "fingerprint": "sources",
    "load_model": "load",
    "load_tokenizer": "load",
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
    "model_config",
    "resolve_device",
    "resolve_placement",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
