"""Which model: its architecture and shape, where its weights come from, loading, precision, weight formats."""

from larosa.models.load import load_model, load_tokenizer, resolve_device, resolve_placement
from larosa.models.sources import ModelError, ensure_available, fingerprint, model_config

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
