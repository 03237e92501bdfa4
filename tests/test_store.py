"""The calibration cache and the records: whole or absent, damage is noticed, nothing computed is lost."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from test_config import parse

from larosa.data import tensor_store
from larosa.experiment import results

IDENTITY = {"model": "x", "tokens": "y"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "calibration"


def build() -> dict[str, torch.Tensor]:
    return {"Q": torch.arange(2000.0)}


def test_built_once_then_loaded() -> None:
    first, from_cache = tensor_store.cached("moments", IDENTITY, build)
    assert not from_cache
    again, from_cache = tensor_store.cached("moments", dict(reversed(IDENTITY.items())), lambda: pytest.fail("rebuilt"))
    assert from_cache
    assert torch.equal(first["Q"], again["Q"])
    _, from_cache = tensor_store.cached("moments", {**IDENTITY, "tokens": "z"}, build)
    assert not from_cache


SIDECARS = {
    "no JSON": "{",
    "empty": "",
    "list": "[]",
    "null": "null",
    "text": '"sha256"',
    "number": "1",
    "no keys": "{}",
    "no hash": json.dumps({"identity": IDENTITY}),
    "hash of another kind": json.dumps({"identity": IDENTITY, "sha256": [1]}),
    "no identity": json.dumps({"sha256": "HASH"}),
    "another identity": json.dumps({"identity": {**IDENTITY, "tokens": "z"}, "sha256": "HASH"}),
}


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "folder", "sidecar a folder", "pipe", *SIDECARS])
def test_damage_is_noticed_named_and_mended(damage: str, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensor_store.cached("moments", IDENTITY, build)
    path = next(cache.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    if damage in SIDECARS:
        text = SIDECARS[damage].replace("HASH", tensor_store.file_sha256(path))
        path.with_suffix(".json").write_text(text)
    elif damage == "truncate":
        path.write_bytes(content[:-100])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flip":
        content[-7] ^= 1
        path.write_bytes(content)
    else:
        place = path.with_suffix(".json") if damage == "sidecar a folder" else path
        place.unlink()
        os.mkfifo(place) if damage == "pipe" else place.mkdir()
    with caplog.at_level(logging.WARNING):
        tensors, from_cache = tensor_store.cached("moments", IDENTITY, build)
    assert not from_cache
    assert torch.equal(tensors["Q"], build()["Q"])
    assert caplog.text.count(path.name) == 1
    assert "built again" in caplog.text
    assert tensor_store.cached("moments", IDENTITY, build)[1]


@pytest.mark.parametrize("lost", ["sidecar", "tensors"])
def test_half_a_pair_is_built_again(lost: str, cache: Path) -> None:
    tensor_store.cached("moments", IDENTITY, build)
    path = next(cache.glob("*.safetensors"))
    (path.with_suffix(".json") if lost == "sidecar" else path).unlink()
    assert not tensor_store.cached("moments", IDENTITY, build)[1]
    assert tensor_store.cached("moments", IDENTITY, build)[1]


def test_tensors_under_another_name_are_not_believed(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = {**IDENTITY, "tokens": "z"}
    tensor_store.cached("moments", IDENTITY, build)
    path = next(cache.glob("*.safetensors"))
    for file in (path, path.with_suffix(".json")):
        file.rename(file.with_stem(f"moments-{tensor_store.digest(other)}"))
    assert not tensor_store.cached("moments", other, build)[1]
    assert "another calibration" in caplog.text


def test_a_full_disk_costs_the_cache_not_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_store, "save_file", full)
    with caplog.at_level(logging.WARNING):
        tensors, _ = tensor_store.cached("moments", IDENTITY, build)
    assert torch.equal(tensors["Q"], build()["Q"])
    assert "No space left" in caplog.text


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(results.RecordError, match="output=FOLDER"):
        results.check_output(parse(f"output={tmp_path / 'file' / 'run'}"))


def test_kill_9_while_writing_leaves_the_old_record_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "result.json"

    def write() -> None:
        for i in itertools.count():
            tensor_store.write_atomically(path, (str(i) * 200000)[:200000].encode())

    for _ in range(5):
        process = multiprocessing.get_context("fork").Process(target=write)  # no imports, which take seconds
        process.start()
        started = time.time_ns()
        while not path.exists() or path.stat().st_mtime_ns < started:
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(0.05)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert len(path.read_bytes()) == 200000


def test_two_processes_build_once(tmp_path: Path) -> None:
    """The second one waits for the first and reads what it built."""
    fork = multiprocessing.get_context("fork")
    ready, found = fork.Barrier(2), fork.SimpleQueue()

    def build() -> dict[str, torch.Tensor]:
        with (tmp_path / "built").open("a") as built:
            built.write("once\n")
        time.sleep(1.0)
        return {"Q": torch.arange(2000.0)}

    def run() -> None:
        ready.wait(60)
        found.put(tensor_store.cached("moments", {"model": "x"}, build)[1])

    processes = [fork.Process(target=run, daemon=True) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0], "a process waits for ever"
    assert sorted(found.get() for _ in processes) == [False, True]
    assert (tmp_path / "built").read_text() == "once\n"
