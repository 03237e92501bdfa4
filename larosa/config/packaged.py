"""Settings by name: files of `conf/`, `sweeps/` and `schedules/`, wherever larosa keeps them."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from larosa.config import former_names, keys
from larosa.records.locations import FOLDERS, packaged


def found(name: str) -> str:
    """A file or folder named as in the repository (`sweeps/methods.yaml`): from here, or if none is, the package's."""
    first, _, rest = name.partition("/")
    if first not in FOLDERS or Path(name).exists():
        return name
    own = packaged(first) / rest
    return str(own) if own.exists() else name


def shortened(name: str) -> str:
    """The inverse of :func:`found`."""
    root = packaged("conf").parent
    path = Path(name)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else name


def choices(group: str) -> list[str]:
    """The names in a folder of `conf/`: `larosa/tuned` is `conf/method/larosa/tuned.yaml`."""
    folder = packaged("conf") / group
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def choice(group: str, name: str) -> dict[str, Any]:
    """The settings of a choice. Raises ValueError for a name that the group does not have."""
    known = choices(group)
    if name not in known:
        if now := former_names.renamed_choice(group, name):
            raise ValueError(now)
        meant = keys.question(get_close_matches(name, known, 3))
        raise ValueError(f"{group} has no {name!r}{meant or '; it has ' + ', '.join(known)}")
    found: dict[str, Any] = yaml.safe_load((packaged("conf") / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return found
