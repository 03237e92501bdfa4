"""Where `conf/`, `sweeps/` and `schedules/` lie: beside the package in a checkout, inside it in an installed wheel.

`setup.py` packs them into the wheel as `larosa/settings/`.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def packaged(name: str) -> Path:
    """The folder `name` (conf, sweeps or schedules)."""
    if (_PACKAGE.parent / "pyproject.toml").is_file():
        return _PACKAGE.parent / name
    return _PACKAGE / "settings" / name
