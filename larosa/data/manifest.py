"""What a cached folder holds, written when it was made: damage is found before anything reads the folder.

    {"schema": 1, "content": HASH, "files": {NAME: {"sha256": HASH, "state": [size, inode, mtime_ns, ctime_ns]}, ...}}

Every use compares the states; a file whose state changed is hashed. A program can set a modification time back but not
the inode's change time, so a changed byte under an old modification time is seen too. `content` is one hash of all
names and hashes: a changed manifest does not match it, and of a pinned wheel it is known beforehand.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larosa.records.disk import file_sha256, read_object, write_atomically

NAME = "larosa-manifest.json"
SCHEMA = 1
_TICK_S = 0.05
"""File systems stamp changes by a clock that moves in steps of at most 10 ms. A manifest is complete one step after the
last change, so a later change cannot have the same stamp."""
_NAMED = 3
"""So many damaged files are named."""

State = tuple[int, int, int, int]
"""Size in bytes, inode, modification time and change time in nanoseconds."""


@dataclass(frozen=True)
class Entry:
    """A file: SHA-256 of its bytes, and its state when they were hashed."""

    sha256: str
    state: State


Files = dict[str, Entry]
"""By path below the folder, with forward slashes."""

_verified: dict[Path, Files] = {}
"""Folders that this process found intact: their manifests are read once, and where one cannot be renewed, the files are
hashed once."""


def is_unchanged(folder: Path, content: str | None = None) -> bool:
    """Whether all files have the states in which they were last found intact. Reads states and the manifest only.

    content: the hash of names and hashes, where it is known beforehand.
    """
    try:
        states = dict(_states(folder))
        if folder in _verified and states == _states_of(_verified[folder]):
            return True
        known = read(folder, content)
    except (OSError, ValueError):
        return False
    if states != _states_of(known):
        return False
    _verified[folder] = known
    return True


def verify(folder: Path, content: str | None = None) -> None:
    """Hash the files whose states changed.

    Raises ValueError that says what is damaged, OSError where the folder cannot be listed or a file cannot be read.
    """
    try:
        known = read(folder, content)
    except ValueError as error:
        if content is None:
            raise
        files = take(folder)  # what the folder should hold is known without its manifest
        if content_hash(files) != content:
            raise ValueError(f"{error}, and its files are not the expected ones") from error
    else:
        files = take(folder, known)
        problems = _differences(folder, known, files)
        if problems:
            more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
            raise ValueError(", ".join(problems[:_NAMED]) + more)
    _verified[folder] = files


def renew(folder: Path) -> None:
    """Write the manifest of a folder that :func:`verify` accepted. Raises OSError."""
    write(folder, _verified[folder])


def take(folder: Path, known: Files | None = None) -> Files:
    """The files of `folder`; those in the state that `known` has are not hashed again. Raises as :func:`verify`."""
    files = {}
    for name, state in _states(folder):
        old = (known or {}).get(name)
        files[name] = old if old and old.state == state else Entry(file_sha256(folder / name), state)
    return files


def write(folder: Path, files: Files) -> None:
    """Write the manifest of `folder`, whose files were just taken. Raises OSError."""
    time.sleep(_TICK_S)
    entries = {name: {"sha256": entry.sha256, "state": entry.state} for name, entry in sorted(files.items())}
    tree = {"schema": SCHEMA, "content": content_hash(files), "files": entries}
    write_atomically(folder / NAME, json.dumps(tree, indent=1).encode())


def read(folder: Path, content: str | None = None) -> Files:
    """The files that the manifest of `folder` names. Raises ValueError if it is damaged or not there."""
    try:
        tree = read_object(folder / NAME)
    except FileNotFoundError:
        raise ValueError(f"it has no {NAME}") from None
    except OSError as error:
        raise ValueError(f"{NAME} cannot be read: {error.strerror}") from error
    try:
        files = {str(name): _entry(entry) for name, entry in tree["files"].items()}
        intact = tree["schema"] == SCHEMA and tree["content"] == content_hash(files)
    except (KeyError, TypeError, ValueError, AttributeError):
        intact = False
    if not intact:
        raise ValueError(f"{NAME} is damaged")
    if content not in (None, tree["content"]):
        raise ValueError(f"{NAME} is of other files")
    return files


def strays(folder: Path) -> list[Path]:
    """Files of the folder that its manifest does not name. Raises as :func:`read`."""
    known = read(folder)
    names = (path.relative_to(folder).as_posix() for path in _entries(folder))
    return [folder / name for name in names if name not in known]


def content_hash(files: Files) -> str:
    """SHA-256 of all names and hashes."""
    lines = (f"{entry.sha256}  {name}\n" for name, entry in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _states_of(files: Files) -> dict[str, State]:
    return {name: entry.state for name, entry in files.items()}


def _entry(tree: dict[str, Any]) -> Entry:
    size, inode, changed, touched = (int(number) for number in tree["state"])
    return Entry(str(tree["sha256"]), (size, inode, changed, touched))


def _entries(folder: Path) -> Iterator[Path]:
    """All but the folders and the manifest; links are not followed."""

    def refuse(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        yield from (Path(parent, name) for name in (*files, *links) if Path(parent, name) != folder / NAME)


def _states(folder: Path) -> Iterator[tuple[str, State]]:
    for path in _entries(folder):
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.relative_to(folder)} is no regular file")
        name = path.relative_to(folder).as_posix()
        yield name, (status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


def _differences(folder: Path, known: Files, files: Files) -> list[str]:
    problems = [f"{name} does not belong there" for name in sorted(files.keys() - known.keys())]
    for name, entry in sorted(known.items()):
        if name not in files:
            problems.append(f"{name} is a folder" if (folder / name).is_dir() else f"{name} is missing")
        elif files[name].state[0] != entry.state[0]:
            problems.append(f"{name} has {files[name].state[0]} bytes, not {entry.state[0]}")
        elif files[name].sha256 != entry.sha256:
            problems.append(f"{name} has SHA-256 {files[name].sha256[:12]}..., not {entry.sha256[:12]}...")
    return problems
