"""Calibration tensors and quantised layers on disk: safetensors, a JSON sidecar with identity and hash beside each.

A file whose hash does not match its sidecar (truncated, corrupted, half written) is named, ignored and built
again. Writing goes through a temporary file and one rename; a lock keeps parallel runs from building twice.
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

from larosa.assets import cache_folder, file_sha256
from larosa.disk import digest as digest
from larosa.disk import write_atomically as write_atomically

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


def cached(kind: str, identity: dict[str, Any], build: Callable[[], Tensors]) -> tuple[Tensors, bool]:
    """The tensors of `identity`, loaded if an intact file holds them, else built and kept.

    Returns the tensors and whether they came from the cache.
    """
    folder = cache_folder() / "calibration"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}-{digest(identity)}.safetensors"
    with FileLock(f"{path}.lock"):
        for leftover in folder.glob(f".{path.name}.*"):
            leftover.unlink(missing_ok=True)  # of a run that was killed while it wrote
        tensors = _load(path)
        if tensors is not None:
            return tensors, True
        tensors = build()
        try:
            _save(path, tensors, identity)
        except (OSError, SafetensorError) as error:
            log.warning("%s could not be kept (%s); this run goes on, the next one computes it again", path, error)
        return tensors, False


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _load(path: Path) -> Tensors | None:
    if not path.exists() or not _sidecar(path).exists():
        return None
    try:
        expected = json.loads(_sidecar(path).read_text(encoding="utf-8"))["sha256"]
        if file_sha256(path) != expected:
            raise ValueError("its SHA-256 is not the one in the sidecar")
        return dict(load_file(path))
    except (ValueError, KeyError, OSError, SafetensorError) as error:
        log.warning("cache file %s is damaged (%s): it is built again", path, error)
        return None


def _save(path: Path, tensors: Tensors, identity: dict[str, Any]) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, scratch)
        sidecar = {"identity": identity, "sha256": file_sha256(scratch), "bytes": scratch.stat().st_size}
        _sidecar(path).unlink(missing_ok=True)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    write_atomically(_sidecar(path), json.dumps(sidecar, indent=1).encode())
