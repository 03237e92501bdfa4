"""The choices of the groups in `conf/`: their names, and the settings that each stands for."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import yaml

from larosa.config import former_names, keys
from larosa.records.packaged import packaged


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
    settings: dict[str, Any] = yaml.safe_load((packaged("conf") / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return settings
