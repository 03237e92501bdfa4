"""larosa: training-free activation sparsity in LLM decoding.

`python run.py` measures; this package's names, loaded when first used, are the same pieces for your own code.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from larosa.api import LaRoSAActivationSparsifier, LaRoSAConfig, sparsify
    from larosa.rotation.rotation import LayerwiseRotationMatrix, ResidualAdapter
    from larosa.sparsity.handle import SparsityHandle
    from larosa.sparsity.top_k import TopKSparsification

_HOME = {
    "LaRoSAActivationSparsifier": "larosa.api",
    "LaRoSAConfig": "larosa.api",
    "sparsify": "larosa.api",
    "LayerwiseRotationMatrix": "larosa.rotation.rotation",
    "ResidualAdapter": "larosa.rotation.rotation",
    "SparsityHandle": "larosa.sparsity.handle",
    "TopKSparsification": "larosa.sparsity.top_k",
}

__all__ = [
    "LaRoSAActivationSparsifier",
    "LaRoSAConfig",
    "LayerwiseRotationMatrix",
    "ResidualAdapter",
    "SparsityHandle",
    "TopKSparsification",
    "sparsify",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `run.py` can check its settings before torch loads."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'larosa' has no attribute {name!r}")
