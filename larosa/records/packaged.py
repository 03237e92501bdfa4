"""Where `conf/`, `sweeps/` and `schedules/` lie: beside the package in a checkout, inside it in an installed wheel.

`setup.py` packs them into the wheel as `larosa/settings/`.
"""

from __future__ import annotations

from pathlib import Path

FOLDERS = ("conf", "sweeps", "schedules")
_PACKAGE = Path(__file__).resolve().parents[1]
_SETTINGS = _PACKAGE / "settings"


def in_checkout() -> bool:
    """Whether the package stands in its repository, with `run.py` beside it."""
    return not _SETTINGS.is_dir()


def packaged(name: str) -> Path:
    """The folder `name`, one of FOLDERS."""
    return (_PACKAGE.parent if in_checkout() else _SETTINGS) / name


def locate(name: str) -> str:
    """A file or folder named as in the repository (`sweeps/methods.yaml`): from here, or if none is, the package's."""
    first, _, rest = name.partition("/")
    if first not in FOLDERS or Path(name).exists():
        return name
    shipped = packaged(first) / rest
    return str(shipped) if shipped.exists() else name


def shortened(name: str) -> str:
    """The inverse of :func:`locate`."""
    root = packaged("conf").parent
    path = Path(name)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else name
