"""What keeps parallel and interrupted runs apart on one disk: short hashes, whole files, and a lock for each cell."""

from __future__ import annotations

import hashlib
import json
import logging
import os
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


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: temporary file, flush to disk, rename."""
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
    """Hold the cell of `folder`: another process that wants it waits until this one ends, even by a kill."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process measures %s: waiting for its record", folder.name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
