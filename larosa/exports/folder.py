"""The folder of an export: written whole or not at all, checked file by file before anything is read.

    larosa-export.json    {"format": 1, "larosa": VERSION, "files": {NAME: SHA-256, ...}, "checksum": ...}
    config.json           model_type larosa: transformers without larosa refuses it
    README.md             the model card
    plan/plan.json        levels, method, dense model, ...   (larosa.exports.plan_file)
    plan/tensors.safetensors
    dense/                the dense model, of export.weights=copy

Weights are in subfolders, so no program takes them for a model of the top level.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from larosa.data.contents import content_hash
from larosa.errors import described
from larosa.exports.errors import ExportError
from larosa.records import checksum
from larosa.records.disk import file_sha256, locked, remove, write_atomically
from larosa.records.version import version

MANIFEST = "larosa-export.json"
FORMAT = 1
"""Raise it when an older larosa could not load what this one writes."""
PLAN = "plan/plan.json"
TENSORS = "plan/tensors.safetensors"
DENSE = "dense"
_NAMED = 3
"""So many damaged files are named."""


def is_export(folder: Path) -> bool:
    """Whether `folder` says that it is an export; it may be damaged."""
    return (folder / MANIFEST).is_file()


def check_destination(folder: Path, force: bool) -> None:
    """Raise ExportError where an export may not be put in the place of what is at `folder`."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ExportError(f"{folder} is no folder: name one that is not there yet")
    if not any(folder.iterdir()) or (force and is_export(folder)):
        return
    if is_export(folder):
        raise ExportError(f"{folder} holds an export already: name another folder, or force=true replaces it")
    raise ExportError(f"{folder} is not empty and no export, so it is not replaced: name another folder")


@contextmanager
def written(folder: Path, force: bool) -> Iterator[Path]:
    """A hidden folder beside `folder` to put the files in; it takes the name when all is written and hashed.

    An exception, or a kill at any moment, leaves no export at `folder`, or the one that was there. Raises ExportError.
    """
    folder = folder.absolute()
    try:
        with locked(folder):  # the leftovers below are of exports that were killed
            check_destination(folder, force)
            for leftover in folder.parent.glob(f".{folder.name}.export-*"):
                remove(leftover)
            scratch = folder.with_name(f".{folder.name}.export-{os.getpid()}")
            scratch.mkdir()
            try:
                yield scratch
                _seal(scratch)
                _put(scratch, folder)
            finally:
                remove(scratch)
    except OSError as error:
        raise ExportError(f"{folder} cannot be written: {described(error)}") from error


def check_free(folder: Path, needed: int) -> None:
    """Raise ExportError where the disk of a folder that is there lacks `needed` bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ExportError(
            f"the export needs {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free at {folder.parent}: free some "
            "space, name another folder, or take export.weights=reference"
        )


def _seal(scratch: Path) -> None:
    """Flush all files to the disk, then write the manifest."""
    names = sorted(path.relative_to(scratch).as_posix() for path in scratch.rglob("*") if path.is_file())
    for name in names:
        (scratch / name).chmod(scratch.stat().st_mode & 0o666)  # safetensors hides its files from other users
        with (scratch / name).open("rb") as handle:
            os.fsync(handle.fileno())
    files = {name: file_sha256(scratch / name) for name in tqdm(names, desc="hashes", unit="file", leave=False)}
    tree = checksum.sealed({"format": FORMAT, "larosa": version(), "files": files})
    write_atomically(scratch / MANIFEST, _text(tree))


def _put(scratch: Path, folder: Path) -> None:
    """Rename the finished folder into place; an export that it replaces is removed afterwards."""
    old = folder.with_name(f".{folder.name}.export-old")
    if folder.is_dir():
        folder.rename(old)
    scratch.rename(folder)
    remove(old)


def verify(folder: Path) -> None:
    """Check every byte of the export against its manifest.

    Raises ExportError: no export, of a newer format, damaged, or with files missing.
    """
    files = _manifest(folder)["files"]
    problems = list(_problems(folder, files))
    if problems:
        more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise ExportError(
            f"the export {folder} is damaged ({', '.join(problems[:_NAMED])}{more}): copy or export it again"
        )


def _manifest(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise ExportError(
            f"{folder}: no such folder; expected one that `larosa export` wrote (of the hub: "
            "`hf download ORGANISATION/NAME --local-dir FOLDER` first)"
        )
    try:
        content = (folder / MANIFEST).read_bytes()
    except FileNotFoundError:
        raise ExportError(f"{folder} is no export: it has no {MANIFEST}; `larosa export` writes one") from None
    except OSError as error:
        raise ExportError(f"{folder / MANIFEST} cannot be read: {error.strerror}") from error
    try:
        raw = json.loads(content)
        _check_format(folder, raw)
        tree = checksum.opened(raw)
        intact = _text(raw) == content and set(tree) == {"format", "larosa", "files"} and _sound(tree["files"])
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise ExportError(f"the export {folder} is damaged ({MANIFEST} was changed): copy or export it again")
    return tree


def _check_format(folder: Path, raw: Any) -> None:
    stored_format = raw.get("format") if isinstance(raw, dict) else None
    if isinstance(stored_format, int) and stored_format > FORMAT:
        raise ExportError(
            f"{folder} was written by larosa {raw.get('larosa')} in format {stored_format}; this larosa {version()} "
            f"reads formats up to {FORMAT}: install a newer larosa"
        )


def _sound(files: Any) -> bool:
    """Whether a manifest names files below its folder, those of the plan among them."""
    if not isinstance(files, dict) or not {PLAN, TENSORS, "config.json"} <= files.keys():
        return False
    return all(_below(name) and isinstance(sha256, str) for name, sha256 in files.items())


def _below(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.as_posix() == name and "\\" not in name


def _problems(folder: Path, files: dict[str, str]) -> Iterator[str]:
    for name, sha256 in tqdm(files.items(), desc="checking the export", unit="file", leave=False):
        path = folder / name
        try:
            if not path.is_file():
                yield f"{name} is missing"
            elif content_hash(path) != sha256:
                yield f"{name} was changed"
        except OSError as error:
            yield f"{name} cannot be read: {error.strerror}"
    for path in sorted((folder / DENSE).rglob("*")):  # transformers would read what is added here
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in files:
            yield f"{name} does not belong there"


def _text(tree: dict[str, Any]) -> bytes:
    return json.dumps(tree, indent=1).encode()
