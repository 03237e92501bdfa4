"""Folders of the cache: damage is noticed, named and mended; a cache that cannot be written is still read."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from larosa.data import assets, manifest, tensor_store
from larosa.data.assets import AssetError, make_once

CONTENT = {"model.safetensors": b"weights" * 999, "config.json": b"{}", "deep/data.arrow": b"rows" * 99}


class Builder:
    """Writes CONTENT, and counts how often."""

    def __init__(self) -> None:
        self.built = 0

    def __call__(self, folder: Path) -> None:
        self.built += 1
        for name, content in CONTENT.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


@pytest.fixture
def build() -> Builder:
    return Builder()


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: Builder) -> Path:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path / "cache"))
    return make_once(tmp_path / "cache" / "models" / "made", build)


@pytest.fixture(autouse=True)
def fresh_process() -> None:
    """What this process found intact is not remembered from one test to the next."""
    manifest._verified.clear()


def intact(folder: Path) -> bool:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    del found[manifest.NAME]
    return {name: path.read_bytes() for name, path in found.items() if not path.is_symlink()} == CONTENT


def flip(path: Path, keep_times: bool) -> None:
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x80
    with path.open("r+b") as handle:
        handle.write(content)
    if keep_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("x")


def by_link(path: Path) -> None:
    path.rename(path.parents[1] / "elsewhere")
    path.symlink_to(path.parents[1] / "elsewhere")


def by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flip": lambda path: flip(path, keep_times=False),
    "flip, times set back": lambda path: flip(path, keep_times=True),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "emptied": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "deleted": Path.unlink,
    "another file": lambda path: path.write_bytes(CONTENT["config.json"]),
    "a folder": by_folder,
    "a link": by_link,
    "a pipe": by_pipe,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "deep/data.arrow"])
def test_a_damaged_file_is_named_and_made_again(
    damage: str, name: str, target: Path, build: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    DAMAGES[damage](target / name)
    assert make_once(target, build) == target
    assert intact(target)
    assert build.built == 2
    (line,) = [record.message for record in caplog.records if "is damaged" in record.message]
    assert str(target) in line
    assert name in line
    make_once(target, build)
    assert build.built == 2
    assert not [path for path in target.parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("damage", ["a file", "a dangling link", "a pipe", "empty", "half"])
def test_whatever_stands_in_the_place_of_the_folder(
    damage: str, target: Path, build: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    if damage == "half":
        (target / manifest.NAME).unlink()
        (target / "config.json").unlink()
    else:
        shutil.rmtree(target)
    if damage == "a file":
        target.write_text("x")
    elif damage == "a dangling link":
        target.symlink_to(target.parent / "nowhere")
    elif damage == "a pipe":
        os.mkfifo(target)
    elif damage == "empty":
        target.mkdir()
    make_once(target, build)
    assert intact(target)
    assert f"{target} is damaged" in caplog.text


TREE = [
    "",
    "{",
    "[]",
    "null",
    '"text"',
    "7",
    "{}",
    '{"schema": 1, "content": "x", "files": null}',
    '{"schema": 1, "content": "x", "files": {"config.json": null}}',
    '{"schema": 1, "content": "x", "files": {"config.json": {"sha256": "y", "state": [1, 2]}}}',
    "\udcff",
]


@pytest.mark.parametrize("text", TREE)
def test_a_damaged_manifest_is_no_proof(
    text: str, target: Path, build: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    (target / manifest.NAME).write_bytes(text.encode(errors="surrogateescape"))
    make_once(target, build)
    assert (build.built, intact(target)) == (2, True)
    assert manifest.NAME in caplog.text


@pytest.mark.parametrize("change", ["hash", "a file less", "schema"])
def test_an_edited_manifest_is_no_proof(change: str, target: Path, build: Builder) -> None:
    path = target / manifest.NAME
    tree = json.loads(path.read_text())
    if change == "hash":
        flip(target / "model.safetensors", keep_times=False)
        tree["files"]["model.safetensors"]["sha256"] = manifest.file_sha256(target / "model.safetensors")
    elif change == "a file less":
        del tree["files"]["config.json"]
    else:
        tree["schema"] = 2
    path.write_text(json.dumps(tree))
    make_once(target, build)
    assert (build.built, intact(target)) == (2, True)


def test_what_does_not_belong_there_is_removed_without_building(
    target: Path, build: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    (target / "adapter_config.json").write_text("{}")
    (target / "deep" / "link").symlink_to("/")
    (target / "deep" / "link.json").symlink_to(target / "config.json")
    make_once(target, build)
    assert (build.built, intact(target)) == (1, True)
    assert sorted(path.name for path in (target / "deep").iterdir()) == ["data.arrow"]
    assert "adapter_config.json does not belong in the cache" in caplog.text
    assert Path("/").is_dir()


def test_a_moved_cache_is_hashed_once(target: Path, build: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = target.with_name("copy")
    shutil.copytree(target, copy)
    hashed = []
    true_hash = manifest.file_sha256

    def counted(path: Path) -> str:
        hashed.append(path)
        return true_hash(path)

    monkeypatch.setattr(manifest, "file_sha256", counted)
    for _ in range(2):
        manifest._verified.clear()
        make_once(copy, build)
    assert build.built == 1
    assert len(hashed) == len(CONTENT)


def content_of(folder: Path) -> str:
    return manifest.content_hash(manifest.take(folder))


def test_pinned_content_needs_no_manifest(target: Path, build: Builder) -> None:
    """As an earlier version left it; and a manifest of its own does not make another content right."""
    content = content_of(target)
    (target / manifest.NAME).unlink()
    make_once(target, build, content)
    assert build.built == 1
    assert (target / manifest.NAME).is_file()
    flip(target / "config.json", keep_times=False)
    (target / manifest.NAME).unlink()
    manifest.write(target, manifest.take(target))
    make_once(target, build, content)
    assert (build.built, intact(target)) == (2, True)


def test_what_was_built_must_be_the_pinned_content(target: Path, build: Builder) -> None:
    with pytest.raises(AssetError, match="not what larosa expects"):
        make_once(target.with_name("other"), build, "0" * 64)
    assert [path.name for path in target.parent.iterdir() if path.suffix != ".lock"] == [target.name]


def test_a_failed_mending_leaves_what_was_there(target: Path) -> None:
    flip(target / "config.json", keep_times=False)
    before = (target / "config.json").read_bytes()

    def offline(_: Path) -> None:
        raise AssetError("a package index must be reachable")

    for _ in range(2):  # and it is not believed the next time
        with pytest.raises(AssetError, match="must be reachable"):
            make_once(target, offline)
    assert (target / "config.json").read_bytes() == before


def test_a_full_disk_is_said(target: Path, build: Builder) -> None:
    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(AssetError, match=r"No space left.*enough free space.*LAROSA_CACHE"):
        make_once(target.with_name("other"), full)


def test_files_are_readable_for_others(target: Path, build: Builder) -> None:
    def private(folder: Path) -> None:
        build(folder)
        (folder / "model.safetensors").chmod(0o600)

    other = make_once(target.with_name("other"), private)
    assert {path.stat().st_mode & 0o777 for path in other.glob("*.*")} == {target.stat().st_mode & 0o666}


def test_kill_9_leaves_nothing_that_looks_finished(target: Path, build: Builder) -> None:
    def slow(folder: Path) -> None:
        build(folder)
        (folder / "config.json").unlink()
        time.sleep(60)

    flip(target / "config.json", keep_times=True)
    for place in (target, target.with_name("other")):
        process = multiprocessing.get_context("fork").Process(target=make_once, args=(place, slow))
        process.start()
        while not list(place.parent.glob(f".{place.name}-*/deep")):
            assert process.is_alive()
            time.sleep(0.01)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        make_once(place, build)
        assert intact(place)
    assert not list(target.parent.glob(".*"))


READ_ONLY = [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EROFS, "Read-only file system")]


def deny_writing(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    """Nothing can be written from here on: the user may be root, so modes would not do."""

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "chmod", "link", "symlink"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(FileLock, "acquire", refuse)
    true_open = os.open

    def only_reading(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse()
        return true_open(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", only_reading)


@pytest.fixture(params=READ_ONLY, ids=["permission", "file system"])
def read_only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    deny_writing(monkeypatch, request.param)


@pytest.mark.usefixtures("read_only")
def test_a_read_only_cache_that_holds_everything_is_read(target: Path, build: Builder) -> None:
    assert make_once(target, build) == target
    assert assets.cache_folder() == target.parents[1]
    assert build.built == 1


@pytest.mark.usefixtures("read_only")
def test_a_read_only_cache_is_hashed_once_a_process(
    target: Path, build: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(target / "config.json", ns=(1, 1))
    make_once(target, build)
    monkeypatch.setattr(manifest, "file_sha256", lambda _: pytest.fail("hashed again"))
    make_once(target, build)
    assert build.built == 1


@pytest.mark.usefixtures("read_only")
@pytest.mark.parametrize("damage", ["damaged", "missing"])
def test_what_a_read_only_cache_lacks_is_named(damage: str, target: Path, build: Builder) -> None:
    place, reason = target.with_name("other"), "it is not there"
    if damage == "damaged":
        flip(target / "config.json", keep_times=True)
        place, reason = target, r"config\.json has SHA-256"
    with pytest.raises(AssetError, match=rf"{place} is needed \({reason}.*LAROSA_CACHE"):
        make_once(place, build)
    assert build.built == 1


@pytest.mark.usefixtures("target")
def test_calibration_of_a_read_only_cache(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def calibrate() -> dict[str, torch.Tensor]:
        return {"Q": torch.ones(3)}

    tensor_store.cached("moments", {"model": "x"}, calibrate)
    deny_writing(monkeypatch, READ_ONLY[0])
    _, from_cache = tensor_store.cached("moments", {"model": "x"}, lambda: pytest.fail("built again"))
    assert from_cache
    tensors, from_cache = tensor_store.cached("moments", {"model": "y"}, calibrate)
    assert torch.equal(tensors["Q"], torch.ones(3))
    assert not from_cache
    assert "LAROSA_CACHE=FOLDER" in caplog.text


def test_no_home_and_no_place_for_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAROSA_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(AssetError, match="set LAROSA_CACHE to a writable folder"):
        assets.cache_folder()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="set LAROSA_CACHE to a writable folder"):
        assets.cache_folder()
    tensors, from_cache = tensor_store.cached("moments", {"model": "x"}, lambda: {"Q": torch.ones(3)})
    assert torch.equal(tensors["Q"], torch.ones(3))
    assert not from_cache
