"""Records: one `result.json` for every measured method, found again by its identity.

The identity is a hash of all that shapes the result: the model's fingerprint and precision, calibration,
schedule, method, texts, evaluation, seed, and larosa's version. It holds neither paths of outputs nor
tracking. Same identity, same numbers (on one kind of device); so a record that exists is returned, not
measured again. A record is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from larosa.config import RunConfig, TextConfig
from larosa.errors import LarosaError
from larosa.provenance import versions
from larosa.store import digest, write_atomically

log = logging.getLogger(__name__)

SCHEMA = 1

Record = dict[str, Any]


class RecordError(LarosaError):
    """A record cannot be written."""


def identity(config: RunConfig, fingerprint: dict[str, str], device: str) -> dict[str, Any]:
    """What shapes the result of `config.method`; the dense model's does not depend on level or calibration."""
    shaping: dict[str, Any] = {
        "schema": SCHEMA,
        "larosa": versions().get("larosa"),
        "model": {"name": config.model.name, "dtype": config.model.dtype, "device": device, **fingerprint},
        "method": config.method.model_dump(mode="json", exclude={"preset"}),
        "texts": {name: _text_identity(text) for name, text in config.texts.items()},
        "evaluation": config.evaluation.model_dump(mode="json"),
        "seed": config.seed,
    }
    if config.method.name != "dense":
        shaping |= {
            "sparsity": config.sparsity,
            "schedule": config.schedule.model_dump(mode="json", exclude={"path"}),
            "schedule_file": _file_hash(config.schedule.path),
            "tokens": config.tokens.model_dump(mode="json"),
            "calibration": config.calibration.model_dump(mode="json", exclude={"text"})
            | {"text": _text_identity(config.calibration.text)},
        }
    return shaping


def _text_identity(text: TextConfig) -> dict[str, Any]:
    own = text.model_dump(mode="json", exclude={"files"})
    return own | {"files": [_file_hash(name) for name in text.files]}


def _file_hash(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        return hashlib.sha256(Path(name).expanduser().read_bytes()).hexdigest()
    except OSError:
        return "unreadable"  # reading the file for real explains why


def record_folder(config: RunConfig, shaping: dict[str, Any]) -> Path:
    """`<output>/<model>-<method>-<level>-<identity>`."""
    level = "" if config.method.name == "dense" else f"-{config.sparsity:g}"
    name = f"{config.model.name}-{config.method.preset.replace('/', '-')}{level}-{digest(shaping)[:10]}"
    return Path(config.output).expanduser() / name


def prepare_folder(folder: Path) -> None:
    """Make a record's folder and prove that it can be written. Raises RecordError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0" * 4096)
    except OSError as error:
        raise RecordError(
            f"the record folder {folder} cannot be written ({error.strerror or error}): free some space, or set "
            "output=FOLDER to a writable one"
        ) from error


def load_record(folder: Path, shaping: dict[str, Any]) -> Record | None:
    """The finished record of this identity, or None. A damaged one is named and ignored."""
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        record = read(path)
        if record["identity"] != digest(shaping):
            raise ValueError("it belongs to another identity")
    except (ValueError, KeyError, TypeError, OSError) as error:
        log.warning("%s is damaged (%s): measured again", path, error)
        return None
    return record


def read(path: Path) -> Record:
    """The record in a `result.json`."""
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    return record


def save_record(folder: Path, record: Record) -> Path:
    """Write `result.json` atomically. If the folder fails now, the record goes to the temporary folder.

    Raises RecordError that says where.
    """
    content = json.dumps(record, indent=1, allow_nan=False).encode()
    path = folder / "result.json"
    try:
        write_atomically(path, content)
    except OSError as error:
        rescue = Path(tempfile.gettempdir()) / f"larosa-{record['identity']}.json"
        try:
            write_atomically(rescue, content)
            where = f"it was saved as {rescue}; move it to {path} to keep it"
        except OSError:
            where = "and neither could the temporary folder"
        raise RecordError(f"{path} cannot be written ({error}); {where}") from error
    return path
