"""Calibration tensors and quantised layers on disk: safetensors, each with a JSON sidecar of identity and hash.

A file whose hash does not match its sidecar (truncated, corrupted, half written), or whose sidecar is damaged or of
something else, is named, ignored and built again. Writing goes through a temporary file and one rename; a lock keeps
parallel runs from building twice.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from larosa.data.assets import AssetError, cache_folder
from larosa.records.disk import digest as digest
from larosa.records.disk import file_sha256, read_object, remove
from larosa.records.disk import write_atomically as write_atomically

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


def cached(kind: str, identity: dict[str, Any], build: Callable[[], Tensors]) -> tuple[Tensors, bool]:
    """The tensors of `identity`, loaded if an intact file holds them, else built and kept.

    Loading takes no lock and writes nothing. Where nothing can be written, a warning names the folder and the tensors
    are built for this process. Returns the tensors and whether they came from the cache.
    """
    try:
        path = cache_folder() / "calibration" / f"{kind}-{digest(identity)}.safetensors"
    except AssetError as error:
        _warn(kind, error)
        return build(), False
    tensors = _load(path, identity, logging.DEBUG)  # what is damaged is named below, unless another process writes it
    if tensors is not None:
        return tensors, True
    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        _load(path, identity, logging.WARNING)
        _warn(path, error)
        return build(), False
    try:
        return _load_or_build(path, identity, build)
    finally:
        lock.release()


def _load_or_build(path: Path, identity: dict[str, Any], build: Callable[[], Tensors]) -> tuple[Tensors, bool]:
    tensors = _load(path, identity, logging.WARNING)
    if tensors is not None:
        return tensors, True
    tensors = build()
    try:
        for leftover in path.parent.glob(f".{path.name}.*"):
            remove(leftover)  # of a run that was killed while it wrote
        _save(path, tensors, identity)
    except (OSError, SafetensorError) as error:
        _warn(path, error)
    return tensors, False


def _warn(path: object, error: Exception) -> None:
    log.warning(
        "%s could not be kept (%s); this run goes on, the next one computes it again. LAROSA_CACHE=FOLDER keeps it "
        "elsewhere",
        path,
        error,
    )


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _load(path: Path, identity: dict[str, Any], level: int) -> Tensors | None:
    """What an intact file holds. `level` of the log line that names a damaged one."""
    if not (os.path.lexists(path) and os.path.lexists(_sidecar(path))):
        return None
    try:
        sidecar = read_object(_sidecar(path))
        if sidecar.get("identity") != json.loads(json.dumps(identity)):
            raise ValueError("its sidecar is of another calibration")
        if not path.is_file():
            raise ValueError("it is no regular file")
        if file_sha256(path) != sidecar.get("sha256"):
            raise ValueError("its SHA-256 is not the one in the sidecar")
        return dict(load_file(path))
    except (ValueError, OSError, SafetensorError) as error:
        log.log(level, "cache file %s is damaged (%s): it is built again", path, error)
        return None


def _save(path: Path, tensors: Tensors, identity: dict[str, Any]) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.touch()
        mode = scratch.stat().st_mode  # safetensors hides its files from other users
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch)
        scratch.chmod(mode)
        sidecar = {"identity": identity, "sha256": file_sha256(scratch), "bytes": scratch.stat().st_size}
        for old in (_sidecar(path), path):
            remove(old)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    write_atomically(_sidecar(path), json.dumps(sidecar, indent=1).encode())
