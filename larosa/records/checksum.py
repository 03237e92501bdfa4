"""The checksum of a record: SHA-256 of its content, so that a record that was changed or damaged is not believed.

The content is the record without its `checksum`, as JSON with sorted keys and no blanks.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

FIELD = "checksum"

Tree = dict[str, Any]


class DamagedError(ValueError):
    """A record is not what was written."""


def checksum(record: Tree) -> str:
    """SHA-256 of a record, as hex. Raises ValueError for a number that is NaN or infinite."""
    content = {key: value for key, value in record.items() if key != FIELD}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(record: Tree) -> Tree:
    """The record as it is written: with its checksum. Raises ValueError for a number that is NaN or infinite."""
    plain: Tree = json.loads(
        json.dumps(record, allow_nan=False)
    )  # tuples are lists, and keys are text, when it is read
    return {key: value for key, value in plain.items() if key != FIELD} | {FIELD: checksum(plain)}


def opened(record: Any) -> Tree:
    """A record that was read, without its checksum. Raises DamagedError where the two do not match."""
    if not isinstance(record, dict):
        kind = "null" if record is None else type(record).__name__
        raise DamagedError(f"expected a JSON object, found {kind}")
    if FIELD not in record:
        raise DamagedError("it has no checksum: an older larosa made it, or it was changed")
    try:
        computed = checksum(record)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"it cannot have been written so: {error}") from error
    if record[FIELD] != computed:
        raise DamagedError("its checksum does not match its content, which was changed or damaged")
    return {key: value for key, value in record.items() if key != FIELD}


def parsed(text: str) -> Tree:
    """The record of a JSON text, without its checksum. Raises DamagedError."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"it is not JSON: {error}") from error
    return opened(record)


def read(path: Path) -> Tree:
    """The record of a JSON file, without its checksum. Raises DamagedError, OSError where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DamagedError(f"it is not UTF-8: {error}") from error
    return parsed(text)
