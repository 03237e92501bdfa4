"""The version of a text of `source: hub`: the content of local data files, or the commit of a data set on the hub.

Both determine a result and neither is a setting: `main` moves, and files are edited.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from larosa.config.run import TextConfig
from larosa.data.contents import content_hash, contents
from larosa.data.stdlib import Part, stdlib_identity

LOCAL_BUILDERS = ("arrow", "csv", "json", "parquet", "text")
"""Values of `dataset` that read local `data_files` and never ask the hub."""
HUB_TIMEOUT_S = 10.0


@functools.cache
def _stdlib(part: Part) -> dict[str, Any]:
    """Hashed once per process: nobody edits the library of a Python that runs."""
    return stdlib_identity(part)


def is_local(text: TextConfig) -> bool:
    """Whether a text of `source: hub` is read from this machine."""
    return text.dataset in LOCAL_BUILDERS or Path(str(text.dataset)).expanduser().is_dir()


def behind(text: TextConfig) -> Any:
    """What the text's rows come from, JSON-able; None where it cannot be told, which reading the text explains.

    Local: the hash of every data file, and of every file of a local data set's folder. Hub: the commit. Python: see
    :func:`larosa.data.stdlib.stdlib_identity`.
    """
    if text.source == "python":
        try:
            return _stdlib(text.part)
        except OSError:
            return None
    if not is_local(text):
        return commit(str(text.dataset), text.subset, text.data_files)
    try:
        return _local(text)
    except Exception:  # the library's errors have no common base
        return None


def _local(text: TextConfig) -> dict[str, Any]:
    from datasets.data_files import DataFilesDict, get_data_patterns, sanitize_patterns

    identity: dict[str, Any] = {}
    folder = Path.cwd()
    if text.dataset not in LOCAL_BUILDERS:
        folder = Path(str(text.dataset)).expanduser().resolve()
        identity["folder"] = contents(_files(folder), folder)
    if text.data_files is not None or text.dataset in LOCAL_BUILDERS:
        base = folder.as_posix()
        patterns = get_data_patterns(base) if text.data_files is None else sanitize_patterns(text.data_files)
        resolved = DataFilesDict.from_patterns(patterns, base_path=base)
        identity["data_files"] = {
            split: [_told(*pair) for pair in zip(files, files.origin_metadata, strict=True)]
            for split, files in resolved.items()
        }
    return identity


def _files(folder: Path) -> list[Path]:
    """Every file below, links followed; what is hidden is no data."""
    paths, seen = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        below = {name: os.path.realpath(Path(parent, name)) for name in folders if not name.startswith(".")}
        folders[:] = [name for name, real in below.items() if real not in seen]
        paths += [Path(parent, name) for name in files if not name.startswith(".")]
    return paths


def _told(file: str, origin: tuple[str, ...]) -> Any:
    """The hash of a local file, or of the archive that contains it; for a remote file, its server's version."""
    place = Path(file.rpartition("::")[2])
    return content_hash(place) if place.is_file() else list(origin)


def commit(dataset: str, subset: str | None = None, data_files: str | None = None) -> str | None:
    """Of a data set on the hub, the commit of `main`; None where neither the hub nor the library's cache knows it."""
    try:
        return _commit(dataset, subset, data_files)
    except Exception:  # as above
        return None


@functools.cache
def _commit(dataset: str, subset: str | None, data_files: str | None) -> str | None:
    """The commit of `main`, requested once per process; without the hub, that of the rows in the library's cache.

    Raises the cache's error where there is neither.
    """
    try:
        return HfApi().dataset_info(dataset, timeout=HUB_TIMEOUT_S).sha
    except Exception:  # as above
        return str(cached_rows(dataset, subset, data_files).hash)


def cached_rows(dataset: str, subset: str | None, data_files: str | None) -> Any:
    """The builder of rows that an earlier run left in the library's cache. Raises OSError or ValueError."""
    from datasets.packaged_modules.cache.cache import Cache

    return Cache(
        repo_id=dataset,
        dataset_name=dataset.split("/")[-1],
        config_name=subset,
        data_files=data_files,
        version="auto",
        hash="auto",
    )
