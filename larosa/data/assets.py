"""The cache folder, ``$LAROSA_CACHE`` or ``~/.cache/larosa``: what is in it was made once, whole, and is verified.

What a run needs is made by :func:`make_once`. Its sources are in :mod:`larosa.data.wheels`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from larosa.data import manifest
from larosa.errors import LarosaError
from larosa.records.disk import remove

log = logging.getLogger(__name__)


class AssetError(LarosaError):
    """Something needed could not be fetched or is not what it should be."""


def cache_folder() -> Path:
    """`$LAROSA_CACHE`, else `~/.cache/larosa`; made if missing."""
    asked = os.environ.get("LAROSA_CACHE") or "~/.cache/larosa"
    try:
        folder = Path(asked).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        raise AssetError(
            f"the cache folder {asked} cannot be made ({error}); set LAROSA_CACHE to a writable folder"
        ) from error
    return folder


def make_once(target: Path, build: Callable[[Path], None], content: str | None = None) -> Path:
    """Return the folder `target`, built by `build(temporary folder)` unless an intact one is there.

    Intact: :mod:`larosa.data.manifest` finds every file as it was made; what is damaged is named and built again.
    `content` is the manifest's hash of all files where it is known beforehand. The folder appears in one rename, so an
    interrupted build leaves nothing that looks finished, and a lock keeps parallel runs from building twice. An intact
    folder is returned without a lock or a write. Raises AssetError where it cannot be written, and what `build` raises.
    """
    if manifest.is_unchanged(target, content):
        return target
    lock = FileLock(f"{target}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        problem = _problem(target, content)
        if problem is None:
            return target
        raise _unwritable(target, problem, error) from error
    try:
        return _mend(target, build, content)
    finally:
        lock.release()


def _mend(target: Path, build: Callable[[Path], None], content: str | None) -> Path:
    if manifest.is_unchanged(target, content):
        return target  # another process was faster
    problem = _problem(target, content)
    if problem is None:
        with suppress(OSError):
            manifest.renew(target)  # spares later processes the hashing
        return target
    if os.path.lexists(target):
        log.warning("%s is damaged (%s): it is made again", target, problem)
    try:
        for leftover in target.parent.glob(f".{target.name}-*"):
            remove(leftover)  # of a run that was killed while it built
        _replace(target, build, content)
    except OSError as error:
        raise _unwritable(target, problem, error) from error
    return target


def _problem(target: Path, content: str | None) -> str | None:
    """What is damaged, in words; None for an intact folder. What does not belong there is removed."""
    if not os.path.lexists(target):
        return "it is not there"
    if target.is_file():
        return "it is a file"
    try:
        for stray in manifest.strays(target):
            remove(stray)
            log.warning("%s does not belong in the cache: removed", stray)
    except (OSError, ValueError):
        pass  # the next look says why
    try:
        log.info("hashing %s, whose files or place changed since it was made", target)
        manifest.verify(target, content)
    except OSError as error:
        return f"{os.path.relpath(error.filename or target, target)} cannot be read: {error.strerror}"
    except ValueError as error:
        return str(error)
    return None


def _replace(target: Path, build: Callable[[Path], None], content: str | None) -> None:
    scratch, old = (target.with_name(f".{target.name}-{kind}{os.getpid()}") for kind in ("", "old-"))
    try:
        scratch.mkdir()
        build(scratch)
        for file in filter(Path.is_file, scratch.rglob("*")):
            file.chmod(scratch.stat().st_mode & 0o666)  # safetensors hides its files from other users
        files = manifest.take(scratch)
        if content not in (None, manifest.content_hash(files)):
            raise AssetError(f"{target.name}: what was unpacked is not what larosa expects; it was not used")
        manifest.write(scratch, files)
        if os.path.lexists(target):
            target.rename(old)
        scratch.rename(target)
    finally:
        for leftover in (scratch, old):
            with suppress(OSError):
                remove(leftover)


def _unwritable(target: Path, problem: str, error: OSError) -> AssetError:
    return AssetError(
        f"{target} is needed ({problem}) and cannot be made here: {error}. Make {cache_folder()} writable, with enough "
        "free space, or set LAROSA_CACHE to another folder"
    )
