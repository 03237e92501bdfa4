"""larosa: training-free activation sparsity in LLM decoding.

`larosa run` measures; this package's names, loaded when first used, are the same pieces for your own code.
"""

from __future__ import annotations

import tomllib
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from larosa.api.sparsify import LaRoSAActivationSparsifier, LaRoSAConfig, sparsify
    from larosa.config.run import CoefficientsConfig, MethodConfig, ScheduleConfig, TokenPolicyConfig, TuningConfig
    from larosa.errors import ArgumentError, LarosaError
    from larosa.rotation.rotation import LayerwiseRotationMatrix, ResidualAdapter
    from larosa.sparsity.handle import SparsityHandle, handle_of
    from larosa.sparsity.top_k import TopKSparsification

    __version__: str

_HOME = {
    "ArgumentError": "larosa.errors",
    "CoefficientsConfig": "larosa.config.run",
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
    "handle_of": "larosa.sparsity.handle",
    "sparsify": "larosa.api.sparsify",
}

__all__ = [
    "ArgumentError",
    "CoefficientsConfig",
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
    "handle_of",
    "sparsify",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that commands can check its settings before torch loads."""
    if name == "__version__":
        return _version()
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'larosa' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    """The checkout's own version where this is one, else the installed distribution's."""
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    try:
        return metadata.version("larosa")
    except metadata.PackageNotFoundError:
        return "0+unknown"
