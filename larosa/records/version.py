"""The version of larosa that runs."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path


def version() -> str:
    """The checkout's own version where this is one, else the installed distribution's."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    try:
        return metadata.version("larosa")
    except metadata.PackageNotFoundError:
        return "0+unknown"
