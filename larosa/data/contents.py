"""What files hold, as hashes for identities: an edit is seen even if it keeps the file's size and modification time.

Large files are hashed once. Their hash is kept, in the process and below the cache folder, under the file's size,
times and inode: the inode's change time moves with every write, and programs cannot set it back.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from larosa.data.assets import AssetError, cache_folder
from larosa.records import checksum
from larosa.records.disk import digest, file_sha256, write_atomically

_SMALL_BYTES = 2**24
"""Files up to this size are hashed every time: milliseconds."""
_SETTLED_S = 2.0
"""A hash is kept only of a file that has not changed for so long: file systems stamp changes in coarse steps."""

State = tuple[int, int, int, int, int]
"""Size in bytes, modification and change time in nanoseconds, inode, device."""


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex. Raises OSError where it cannot be read."""
    before = _state(path)
    if before[0] <= _SMALL_BYTES:
        return file_sha256(path)
    return _kept(path.absolute(), before)


def contents(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """Path below `root` -> hash, of every file. Raises OSError where one cannot be read."""
    return {path.relative_to(root).as_posix(): content_hash(path) for path in sorted(paths)}


def hash_if_readable(path: Path) -> str:
    """The hash of a file's bytes; `unreadable` where it cannot be read, which reading it for real explains."""
    try:
        return content_hash(path)
    except OSError:
        return "unreadable"


@functools.lru_cache(maxsize=4096)
def _kept(path: Path, state: State) -> str:
    """The hash of a large file in this state, from disk if it is known there."""
    name = digest({"path": str(path), "state": state})
    try:
        note = cache_folder() / "hashes" / f"{name}.json"
        return str(checksum.read(note)["sha256"])
    except (OSError, AssetError, ValueError, KeyError):
        sha256 = file_sha256(path)
    settled = time.time() - max(state[1], state[2]) / 1e9 > _SETTLED_S
    if settled and _state(path) == state:
        with suppress(OSError, AssetError):  # a cache that cannot be written costs time only
            note = cache_folder() / "hashes" / f"{name}.json"
            note.parent.mkdir(exist_ok=True)
            write_atomically(note, json.dumps(checksum.sealed({"file": path.name, "sha256": sha256})).encode())
    return sha256


def _state(path: Path) -> State:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev
