"""After `import larosa`, transformers' Auto classes load exports, in whichever order the two are imported.

`import larosa` imports no transformers: the registration runs when transformers' own module of an Auto class has been
imported, at once where it has been already. A finder at the front of `sys.meta_path` sees these imports.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_AUTO = "transformers.models.auto"
_MODULES = {
    f"{_AUTO}.configuration_auto": "larosa.exports.auto",
    f"{_AUTO}.modeling_auto": "larosa.exports.auto",
    f"{_AUTO}.tokenization_auto": "larosa.exports.auto",
    "transformers.quantizers.auto": "larosa.exports.quantizer",
}
"""transformers' module -> the one of larosa that registers in it."""


def install() -> None:
    """Register now in what transformers has imported, and in the rest when it is imported; once per process."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    for name in _MODULES:
        if name in sys.modules:
            _register(sys.modules[name])
    sys.meta_path.insert(0, _Finder())


def _register(module: ModuleType) -> None:
    import_module(_MODULES[module.__name__]).register(module)


class _Finder(MetaPathFinder):
    """Lets the other finders find transformers' modules, and registers after their import."""

    def __init__(self) -> None:
        self._looking = set[str]()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of one of the modules, with a loader that registers; None for all others."""
        if fullname not in _MODULES or fullname in self._looking:
            return None
        self._looking.add(fullname)
        try:
            spec = find_spec(fullname)
        finally:
            self._looking.discard(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


class _Registering(Loader):
    """Loads as the module's own loader does, then registers."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the module's own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As the module's own loader does; then the registration."""
        self._loader.exec_module(module)
        _register(module)

    def __getattr__(self, name: str) -> Any:
        """Source, code and resources, for whoever asks."""
        return getattr(self._loader, name)
