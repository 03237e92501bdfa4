"""A record on disk: `result.json`, written whole or not at all, with a checksum, and believed only if it matches."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from larosa.config.run import RunConfig
from larosa.errors import LarosaError, advice
from larosa.experiment.provenance import versions
from larosa.experiment.record_schema import problem
from larosa.records import checksum
from larosa.records.disk import digest, write_atomically

log = logging.getLogger(__name__)

NUMERIC = ("torch", "transformers", "tokenizers", "datasets")
"""Packages whose other versions change numbers, if only by rounding."""

UNITS = {
    "*_sparsity, weight_sparsity_*, site_*, *_fraction, *_share": "fraction",
    "*_bytes, bytes": "bytes; per token where they are read",
    "flops_per_token": "floating-point operations, a multiply-add counts two",
    "wall_s": "seconds",
    "perplexity": "exp of nats per predicted token; its standard error in the same unit",
    "block_nll_nats": "nats, summed over a block",
    "thresholds": "magnitude of the activation in the site's basis",
    "site_error, layer_error, relative_logits_error, bound": "relative, Euclidean norm",
    "ms_per_token": "milliseconds of one decode step, batch 1",
    "tokens_per_s, read_bytes_per_s": "per second",
    "zero_shot value, standard_error": "fraction right",
}

Record = dict[str, Any]


class RecordError(LarosaError):
    """A record cannot be written."""


def check_output(config: RunConfig) -> None:
    """Prove that the folder of the records can be written. Raises RecordError."""
    folder = Path(config.output).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0" * 4096)
    except OSError as error:
        raise RecordError(
            f"the record folder {folder} cannot be written ({error.strerror or error}): {advice(error)}; "
            "output=FOLDER names another folder"
        ) from error


def load_record(folder: Path, shaping: dict[str, Any]) -> Record | None:
    """The finished record of this identity, or None. One that is damaged or incomplete is named, once, and ignored.

    A record that was saved in the temporary folder because this one could not be written is put in its place, and so
    is one that was moved here under its name there.
    """
    path = folder / "result.json"
    for place in (path, *_rescued(folder, digest(shaping))):
        try:
            record = _believed(place, shaping)
        except FileNotFoundError:
            continue
        except (ValueError, OSError) as error:
            _name(place, str(error))
            continue
        if place != path:
            _put_back(place, path, record)
        _name_versions(path, record)
        return record
    return None


def _believed(path: Path, shaping: dict[str, Any]) -> Record:
    """The record of a file. Raises ValueError that says why it is not used, OSError where it cannot be read."""
    record = checksum.read(path)
    if reason := problem(record, shaping):
        raise ValueError(reason)
    return record


_named: set[tuple[str, str, int]] = set()
"""Damaged records that were named: path, reason, time of change. A run looks more than once."""


def _name(path: Path, reason: str) -> None:
    try:
        told = (str(path), reason, path.stat().st_mtime_ns)
    except OSError:
        told = (str(path), reason, 0)
    if told not in _named:
        log.warning("%s is damaged (%s): measured again", path, reason)
    _named.add(told)


def _name_versions(path: Path, record: Record) -> None:
    had, here = record["versions"], versions()
    other = [name for name in NUMERIC if name in had and name in here and had[name] != here[name]]
    if other:
        pairs = ", ".join(f"{name} {had[name]} (here {here[name]})" for name in other)
        log.warning("%s was measured with %s; force=true measures it again", path, pairs)


def _rescued(folder: Path, identity: str) -> Iterator[Path]:
    """Other places of a record; files that others may have left in a shared temporary folder are ignored."""
    name = f"larosa-{identity}.json"
    yield folder / name
    try:
        place = Path(tempfile.gettempdir()) / name
        if not place.is_symlink() and place.stat().st_uid == os.getuid():
            yield place
    except OSError:
        return


def _put_back(place: Path, path: Path, record: Record) -> None:
    try:
        _write(path, record)
        place.unlink()
        log.info("%s was found as %s and put in its place", path, place)
    except OSError as error:
        log.warning("%s is used where it is (%s): %s cannot be written", place, error, path)


def finite(tree: Any, path: str) -> None:
    """Raise RecordError that names the first number in a nested record that is NaN or infinite."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            finite(value, f"{path}.{key}")
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            finite(value, f"{path}[{i}]")
    elif isinstance(tree, float) and not math.isfinite(tree):
        raise RecordError(
            f"{path} is {tree}: the model overflowed. Check the weights and model.dtype (float16 overflows in some "
            "models: use bfloat16 or float32)"
        )


def read(path: Path) -> Record:
    """The record in a `result.json`. Raises DamagedError where it does not match its checksum."""
    return checksum.read(path)


def save_record(folder: Path, record: Record) -> Path:
    """Write `result.json` atomically. If the folder fails now, the record goes to the temporary folder, where
    :func:`load_record` finds it.

    Raises RecordError that says where it is.
    """
    finite(record, "record")
    path = folder / "result.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            path.rename(path.with_name(f"{path.name}.{time.time_ns()}"))
        _write(path, record)
    except OSError as error:
        try:
            rescue = Path(tempfile.gettempdir()) / f"larosa-{record['identity']}.json"
            _write(rescue, record)
            where = f"it was saved as {rescue}: the same command takes it from there, or move it to {path}"
        except OSError:
            where = "and neither could the temporary folder"
        raise RecordError(f"{path} cannot be written ({error}); {where}") from error
    return path


def _write(path: Path, record: Record) -> None:
    write_atomically(path, json.dumps(checksum.sealed(record), indent=1, allow_nan=False).encode())
