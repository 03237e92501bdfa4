"""Source code as a text: the standard library of the Python that runs, read in place.

Each file is a document. A hash of its path decides its half and its place, so another Python version that adds or
removes files moves no other file from one half to the other. Excluded are tests, what is installed beside the library,
and files that hold generated tables or data instead of code.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
import tokenize
from pathlib import Path
from typing import Any, Literal

from larosa.data.contents import contents

EXCLUDED_FOLDERS = frozenset(
    {"__phello__", "__pycache__", "dist-packages", "encodings", "ensurepip", "idle_test", "idlelib"}
    | {"lib-dynload", "lib2to3", "msilib", "pydoc_data", "site-packages", "test", "tests"}
)
EXCLUDED_FILES = frozenset(("html/entities.py", "keyword.py", "symbol.py", "this.py", "token.py"))
"""Tables, and what is written by a generator."""
_GENERATED = ("_sysconfigdata", "config-", "_osx_support")
"""Beginnings of names that differ from one build of one Python version to the next."""

Part = Literal["all", "calibration", "heldout"]


def stdlib_folder() -> Path:
    """Where the sources of this Python are."""
    return Path(sysconfig.get_path("stdlib"))


def stdlib_files(part: Part, folder: Path | None = None) -> list[Path]:
    """The files of a half, or all, in the order of the hashes of their paths. Empty where there are no sources."""
    folder = folder or stdlib_folder()
    keyed = {_hash(path.relative_to(folder)): path for path in _sources(folder)}
    return [keyed[key] for key in sorted(keyed) if part == "all" or (part == "calibration") == _is_calibration(key)]


def stdlib_documents(part: Part, folder: Path | None = None) -> list[str]:
    """The sources of a half, or all, decoded as Python would. Raises OSError, SyntaxError, UnicodeDecodeError."""
    documents = []
    for path in stdlib_files(part, folder):
        with tokenize.open(path) as source:
            documents.append(source.read())
    return documents


def stdlib_identity(part: Part, folder: Path | None = None) -> dict[str, Any]:
    """What stands behind the text: version of Python, number of files, one SHA-256 of their paths and contents."""
    folder = folder or stdlib_folder()
    hashes = contents(stdlib_files(part, folder), folder)
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in hashes.items())
    sha256 = hashlib.sha256(lines.encode()).hexdigest()
    return {"python": platform.python_version(), "files": len(hashes), "sha256": sha256}


def _sources(folder: Path) -> list[Path]:
    modules = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in EXCLUDED_FOLDERS and not name.startswith(_GENERATED)]
        paths = (Path(parent, name) for name in files if name.endswith(".py") and not name.startswith(_GENERATED))
        modules += [path for path in paths if path.relative_to(folder).as_posix() not in EXCLUDED_FILES]
    return [path for path in modules if path.stat().st_size]


def _hash(path: Path) -> bytes:
    return hashlib.sha256(path.as_posix().encode()).digest()


def _is_calibration(key: bytes) -> bool:
    return key[-1] % 2 == 0
