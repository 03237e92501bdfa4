"""Versions behind the tasks of a run: lm-eval's version and definitions, data sets of the hub, recorded requests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from larosa.config.run import ZeroShotConfig
from larosa.data.contents import content_hash, hash_if_readable
from larosa.data.sources import commit
from larosa.evaluation.tasks.wheel_tasks import POOLED, WHEEL_TASKS

_INCLUDE = re.compile(r"""^["']?include["']?:\s*["']?([^"'#\n]+?)["']?\s*$""", re.MULTILINE)


def behind_tasks(config: ZeroShotConfig) -> dict[str, Any]:
    """Sources of the scores, JSON-able; None where a version is unknown, which scoring explains."""
    if not config.tasks:
        return {}
    if config.requests is not None:
        return {"requests": hash_if_readable(Path(config.requests).expanduser())}
    names = [part for name in config.tasks for part in POOLED.get(name, (name,))]
    sources: dict[str, Any] = {"lm_eval": _version(), "definitions": _hash(set(_folders(names)))}
    if config.source == "hub":
        sources["data"] = {name: _data(name) for name in names}
    return sources


def _version() -> str | None:
    try:
        return metadata.version("lm-eval")
    except metadata.PackageNotFoundError:
        return None


def _folders(names: list[str]) -> Iterator[Path]:
    """The folders of the tasks' definitions and of what these include."""
    for name in names:
        path = _definition(name)
        seen: set[Path] = set()
        while path is not None and path.is_file() and path not in seen:
            yield path.parent
            seen.add(path)
            included = _INCLUDE.search(path.read_text(encoding="utf-8"))
            path = (path.parent / included[1]).resolve() if included else None


def _definition(name: str) -> Path | None:
    """The YAML of a task; None for one that lm-eval does not have, or without lm-eval."""
    package = find_spec("lm_eval")
    if package is None or not package.submodule_search_locations:
        return None
    if name in WHEEL_TASKS:
        return Path(package.submodule_search_locations[0]) / "tasks" / f"{WHEEL_TASKS[name].definition}.yaml"
    from larosa.evaluation.tasks.harness import index  # lm-eval's, which takes seconds

    entry = index(name).get(name)
    return None if entry is None else entry.yaml_path


def _hash(folders: set[Path]) -> str:
    """Of the definitions and the functions that they name."""
    lines = [
        f"{folder.name}/{file.name} {content_hash(file)}"
        for folder in folders
        for file in folder.iterdir()
        if file.is_file() and file.suffix != ".md"
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _data(name: str) -> str | None:
    """The commit of a task's data set on the hub."""
    from larosa.evaluation.tasks.harness import index

    entry = index(name).get(name)
    told = (entry and entry.cfg) or {}
    return commit(str(told["dataset_path"]), told.get("dataset_name")) if "dataset_path" in told else None
