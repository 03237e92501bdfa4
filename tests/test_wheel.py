"""The built wheel: our names alone, everything its modules read, and the commands from a folder that holds nothing."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from test_pipeline import write_text

from conftest import ROOT

BUILD = "import sys, setuptools.build_meta as build; print(build.{what}(sys.argv[1]))"


def build(what: str, source: Path, target: Path) -> Path:
    """By setuptools alone, without network."""
    target.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD.format(what=what), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=source)
    assert done.returncode == 0, done.stderr[-2000:]
    return target / done.stdout.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist of the files that git would commit, so that it holds all that the wheel needs."""
    folder = tmp_path_factory.mktemp("build")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    source = folder / "checkout"
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    with tarfile.open(build("build_sdist", source, folder / "sdist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("build_wheel", unpacked, folder / "wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By pip, into a folder of its own: the packages, and the console command in bin/."""
    folder = tmp_path_factory.mktemp("site-packages")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(folder)]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def python(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The wheel's modules before those of the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=300, check=False, cwd=cwd, env=environment
    )


def larosa(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The console command."""
    return python(installed, cwd, str(installed / "bin" / "larosa"), *words)


def test_no_top_level_name_but_ours(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == {"larosa", "larosa_kernels", "larosa_analysis"}


def test_every_file_that_a_module_reads_is_in_it(installed: Path) -> None:
    for name in ("conf", "sweeps", "schedules"):
        found = {path.relative_to(ROOT / name) for path in (ROOT / name).rglob("*") if path.is_file()}
        packed = installed / "larosa" / "settings" / name
        assert found == {path.relative_to(packed) for path in packed.rglob("*") if path.is_file()}
    for package in (ROOT / "larosa", ROOT / "kernels" / "larosa_kernels", ROOT / "analysis" / "larosa_analysis"):
        for path in package.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert (installed / path.relative_to(package.parent)).is_file(), path


def test_settings_sweeps_and_schedules_are_found_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    for start in (["-m", "larosa"], [str(installed / "bin" / "larosa"), "run"]):
        words = ["--config-dir", "sweeps", "--config-name", "smoke", "--cfg", "job"]
        done = python(installed, tmp_path, *start, *words)
        assert done.returncode == 0, done.stderr
        assert "output: runs/smoke" in done.stdout
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.yaml").write_text("defaults: [config, _self_]\noutput: elsewhere\n")
    done = larosa(installed, tmp_path, "run", "--config-dir", "own", "--config-name", "mine", "--cfg", "job")
    assert "output: elsewhere" in done.stdout, done.stderr
    code = (
        "import larosa; from larosa.cli.command import read_settings;"
        "from larosa.records.packaged import in_checkout, locate;"
        "print(larosa.__file__, in_checkout(), locate('sweeps/methods.yaml'));"
        "print(read_settings(['schedule=file', 'schedule.path=output-0.5']).schedule.path)"
    )
    done = python(installed, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    where, checkout, sweep, schedule = done.stdout.split()
    assert checkout == "False"
    for path in (where, sweep, schedule):
        assert Path(path).is_relative_to(installed)
        assert Path(path).is_file()


def test_tables_ask_for_the_records_that_a_wheel_does_not_hold(installed: Path, tmp_path: Path) -> None:
    done = python(installed, tmp_path, "-m", "larosa_analysis.build")
    assert done.returncode == 2
    assert "required: --records" in done.stderr
    (tmp_path / "records").mkdir()
    done = python(installed, tmp_path, "-m", "larosa_analysis.build", "--records", "records")
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "report" / "tables" / "table02.md").read_text()
    assert "`larosa run --config-dir sweeps --config-name table02" in table  # the sweeps' own headers, in the wheel
    assert "python run.py" not in table
    assert "<code>larosa report runs</code>" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.slow
def test_the_commands_work_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """A schedule found, a run on it with figures, a failure noted with the command that repeats it, a report."""
    texts = [write_text(tmp_path / f"{i}.txt", i) for i in range(2)]
    tiny = [
        "model=tiny-llama", "method=magnitude", "baseline=none", "tracking=off", "calibration=text", "texts=text",
        f"calibration.text.files={texts[0]}", "calibration.sequences=2", "calibration.length=64",
        f"texts.text.files={texts[1]}", "evaluation.perplexity.length=64", "evaluation.perplexity.max_tokens=128",
        "evaluation.zero_shot.tasks=[]",
    ]  # fmt: skip
    done = larosa(installed, tmp_path, "allocate", *tiny, "schedule.path=mine")
    assert (tmp_path / "schedules" / "tiny-llama" / "mine.json").is_file(), done.stderr
    done = larosa(installed, tmp_path, "run", *tiny, "schedule=file", "schedule.path=mine")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 1
    assert list(tmp_path.glob("runs/*/*.png"))
    done = larosa(installed, tmp_path, "run", "-m", *tiny, "sparsity=0.99")
    assert done.returncode == 2
    (note,) = tmp_path.glob("runs/*/failed.json")
    again = shlex.split(json.loads(note.read_text())["command"])
    assert again[:4] == ["larosa", "run", "-m", "model=tiny-llama"]
    note.unlink()
    larosa(installed, tmp_path, *again[1:])
    assert shlex.split(json.loads(note.read_text())["command"]) == again
    (tmp_path / "list.yaml").write_text(
        "levels: [0.4]\nschedules: {uniform: null}\nmethods: [{settings: method=magnitude}]\n"
    )
    done = larosa(installed, tmp_path, "compare", "list.yaml", *(word for word in tiny if word != "method=magnitude"))
    assert done.returncode == 0, done.stderr
    done = larosa(installed, tmp_path, "report")
    assert done.returncode == 0, done.stderr
    assert "from 3 runs" in done.stdout  # on the file, dense, uniform
    assert "magnitude" in (tmp_path / "report" / "report.html").read_text()
