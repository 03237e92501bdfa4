"""Paths of the machine are cut to the file's name before a record leaves it."""

from __future__ import annotations

import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

_ABSOLUTE = re.compile(r"""(?<![^\s"'=:,(\[{])(?:file:/*|~|[A-Za-z]:)?[/\\][^\s"',)\]}]+""")


def scrub(tree: Any, key: str = "") -> Any:
    """The tree with every path of the machine cut to the file's name: `path` and `files`, and what is absolute."""
    if isinstance(tree, dict):
        return {name: scrub(value, name) for name, value in tree.items()}
    if isinstance(tree, list):
        return [scrub(value, key) for value in tree]
    if not isinstance(tree, str):
        return tree
    if key in ("path", "files") or _ABSOLUTE.match(tree):
        return _file_name(tree)
    return _ABSOLUTE.sub(lambda match: _file_name(match[0]), tree)


def _file_name(path: str) -> str:
    return PureWindowsPath(path).name if "\\" in path else PurePosixPath(path).name
