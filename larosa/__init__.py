"""larosa: training-free activation sparsity in LLM decoding.

`larosa run` measures; this package's names, loaded when first used, are the same pieces for your own code.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from larosa.exports import transformers_hook
from larosa.records.version import version

if TYPE_CHECKING:
    from larosa.api.sparsify import LaRoSAActivationSparsifier, LaRoSAConfig, sparsify
    from larosa.config.run import CoefficientsConfig, MethodConfig, ScheduleConfig, TokenPolicyConfig, TuningConfig
    from larosa.errors import ArgumentError, LarosaError
    from larosa.exports.errors import ExportError
    from larosa.exports.load import load, load_tokenizer
    from larosa.exports.write import export
    from larosa.rotation.rotation import LayerwiseRotationMatrix, ResidualAdapter
    from larosa.sparsity.handle import SparsityHandle, handle_of
    from larosa.sparsity.top_k import TopKSparsification

    __version__: str

_HOME = {
    "ArgumentError": "larosa.errors",
    "CoefficientsConfig": "larosa.config.run",
    "ExportError": "larosa.exports.errors",
    "LaRoSAActivationSparsifier": "larosa.api.sparsify",
    "LaRoSAConfig": "larosa.api.sparsify",
    "LarosaError": "larosa.errors",
    "LayerwiseRotationMatrix": "larosa.rotation.rotation",
    "MethodConfig": "larosa.config.run",
    "ResidualAdapter": "larosa.rotation.rotation",
    "ScheduleConfig": "larosa.config.run",
    "SparsityHandle": "larosa.sparsity.handle",
    "TokenPolicyConfig": "larosa.config.run",
    "TopKSparsification": "larosa.sparsity.top_k",
    "TuningConfig": "larosa.config.run",
    "export": "larosa.exports.write",
    "handle_of": "larosa.sparsity.handle",
    "load": "larosa.exports.load",
    "load_tokenizer": "larosa.exports.load",
    "sparsify": "larosa.api.sparsify",
}

__all__ = [
    "ArgumentError",
    "CoefficientsConfig",
    "ExportError",
    "LaRoSAActivationSparsifier",
    "LaRoSAConfig",
    "LarosaError",
    "LayerwiseRotationMatrix",
    "MethodConfig",
    "ResidualAdapter",
    "ScheduleConfig",
    "SparsityHandle",
    "TokenPolicyConfig",
    "TopKSparsification",
    "TuningConfig",
    "__version__",
    "export",
    "handle_of",
    "load",
    "load_tokenizer",
    "sparsify",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that commands can check its settings before torch loads."""
    if name == "__version__":
        return version()
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'larosa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


transformers_hook.install()
