"""What keeps parallel and interrupted runs apart on one disk: hashes, whole files, and a lock for each run."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


def digest(identity: dict[str, Any]) -> str:
    """A short hash of a JSON-able identity, independent of the order of its keys."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hex. Raises OSError."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object of a file. Raises ValueError if it holds none, OSError if it cannot be read."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is no JSON: {error}") from error
    if not isinstance(tree, dict):
        kind = "null" if tree is None else type(tree).__name__
        raise ValueError(f"{path.name} holds {kind}, expected a JSON object")  # noqa: TRY004  # the file's fault
    return tree


def remove(path: Path) -> None:
    """Remove whatever stands at `path`, a folder with what is in it; nothing there is fine. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: temporary file, flush to disk, rename. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the run of `folder`: another process that wants it waits until this one ends, even by a kill."""
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder / ".lock", folder):
        yield


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold one file while it is made, in the same way; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _held(path.with_name(f".{path.name}.lock"), path):
        yield


@contextmanager
def _held(lock: Path, what: Path) -> Iterator[None]:
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        log.info("another process makes %s: waiting for it", what.name)
        held.acquire()
    try:
        yield
    finally:
        held.release()
