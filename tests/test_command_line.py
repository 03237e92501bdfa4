"""`run.py` as a new user types it: mistakes and the system's errors end in one message, wherever it is called from."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typed
from test_config import parse
from test_pipeline import write_text

from conftest import ROOT
from larosa.cli import launch
from larosa.errors import advice, described
from larosa.experiment import pipeline
from larosa.experiment.record_file import load_record
from larosa.experiment.results import RecordError, check_output

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in (".", "kernels", "analysis"))}


def larosa(*words: str, cwd: Path, module: bool = False) -> subprocess.CompletedProcess[str]:
    start = ["-m", "larosa"] if module else [str(ROOT / "run.py")]
    return subprocess.run(
        [sys.executable, *start, *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=cwd,
        env=ENVIRONMENT,
    )


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """Overrides of the smallest run, on texts in a folder whose name Hydra cannot read."""
    folder = tmp_path / "it's (a) [b]=c"
    folder.mkdir()
    return [
        "model=tiny-llama", "method=larosa/paper", "baseline=none", "calibration=text", "texts=text", "tracking=off",
        f"calibration.text.files={write_text(folder / 'é.txt', 0)}", "calibration.sequences=2", "calibration.length=64",
        f"texts.text.files=[{write_text(folder / 'b c.txt', 1)}]", "evaluation.perplexity.length=64",
        "evaluation.perplexity.max_tokens=128", "evaluation.zero_shot.tasks=[]", "figures=null",
    ]  # fmt: skip


def test_a_run_from_another_folder_with_paths_of_every_kind(tiny: list[str], tmp_path: Path) -> None:
    """The records stand where the command was typed; `python -m larosa` finds them done."""
    done = typed.typed(*tiny, "output=own [x]=y", cwd=tmp_path, said=tmp_path / "said")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "own [x]=y").glob("*/result.json"))) == 1
    again = typed.typed(*tiny, "output=own [x]=y", cwd=tmp_path, said=tmp_path / "again", module="larosa")
    assert "is done already" in again.stderr


def test_a_sweep_expands_home_and_takes_flags_anywhere(tiny: list[str], tmp_path: Path) -> None:
    words, home = ["sparsity=0.3,1.5", *tiny, "-m", "output=~/swept"], {"HOME": str(tmp_path / "home")}
    done = typed.typed(*words, cwd=tmp_path, env=home, said=tmp_path / "said")
    assert done.returncode == 2
    assert "1 of 2 runs done, 1 failed" in done.stderr
    assert len(list((tmp_path / "home" / "swept").glob("*/result.json"))) == 1
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("words", [["-m", "sparsity=0.3,0.4"], []])
def test_an_output_that_is_a_file_is_said(tiny: list[str], tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "file").write_text("")
    done = typed.typed(*tiny, *words, "output=file", cwd=tmp_path, said=tmp_path / "said")
    assert done.returncode == 2
    assert "file" in done.stderr
    assert "remove it or name another place" in done.stderr
    assert "free some space" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=tiny-lama"], "ERROR: model=tiny-lama: no such choice; did you mean tiny-llama"),
        (["--config-dir", str(ROOT / "sweeps"), "--config-name", "table02", "-m", "modle=x"], "did you mean model"),
        (["-m", "method=larosa/paper,larosa/papr"], "did you mean larosa/paper"),
        (["model.shape.num_hidden_layers=0"], "model.shape.num_hidden_layers: Input should be greater"),
        (["seed=18446744073709551616"], "seed: Input should be less than 4294967296"),
        (["model.path=a,b"], "\"model.path='a,b'\""),
    ],
)
def test_mistakes_end_in_one_message(words: list[str], message: str, tmp_path: Path) -> None:
    done = larosa(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "HYDRA_FULL_ERROR" not in done.stderr


def test_help_says_how_to_begin_and_survives_a_closed_pipe(tmp_path: Path) -> None:
    done = larosa("--help", cwd=tmp_path, module=True)
    assert done.returncode == 0
    assert done.stdout.startswith("One run:    python run.py model=tiny-llama")
    assert "method/larosa: block_diagonal" in done.stdout
    piped = f"{sys.executable} {ROOT / 'run.py'} --help | head -1"
    cut = subprocess.run(["sh", "-c", piped], capture_output=True, text=True, timeout=60, check=True, env=ENVIRONMENT)
    assert cut.stderr == ""


def test_the_modules_have_a_help_of_their_own(tmp_path: Path) -> None:
    done = typed.typed("--help", cwd=tmp_path, said=tmp_path / "said", module="larosa.cli.compare")
    assert done.stdout.startswith("usage: python -m larosa.cli.compare LIST.yaml")
    assert "larosa compare sweeps/methods.yaml" in done.stdout


def test_an_interrupted_sweep_says_how_it_goes_on(tiny: list[str], tmp_path: Path) -> None:
    words = ["-m", *tiny, "sparsity=0.1,0.2,0.3,0.4,0.5", "output=runs"]
    running = typed.start(*words, cwd=tmp_path, said=tmp_path / "said")
    typed.until(running, lambda: list(tmp_path.glob("runs/.sweep-*")), "beginning its sweep")
    os.kill(running.pid or 0, signal.SIGINT)
    running.join(typed.TIMEOUT_S)
    running.kill()  # one that goes on says nothing of an interruption
    running.join()
    said = (tmp_path / "said" / "err").read_text()
    assert "interrupted: what is recorded stays" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("kind", "helps"),
    [
        (errno.EACCES, "permissions"),
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "read-only"),
        (errno.ENOTDIR, "a file stands where a folder is expected"),
        (errno.EISDIR, "a folder stands where a file is expected"),
        (errno.EIO, "disk or network drive"),
    ],
)
def test_the_system_s_errors_name_file_deed_and_remedy(
    kind: int, helps: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(kind, os.strerror(kind), "/somewhere/file")

    monkeypatch.setattr(pipeline, "run", refuse)
    monkeypatch.setattr(launch, "read", lambda _: parse("tracking=off"))
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as ended:
        launch.alone({}, "")  # type: ignore[arg-type]
    assert ended.value.code == 2
    message = caplog.messages[-1]
    assert message.startswith(f"/somewhere/file: {os.strerror(kind)} (in ")
    assert helps in message
    assert "output=FOLDER" in message
    assert "[Errno" not in message


def test_the_system_s_errors_say_what_helps() -> None:
    assert "x: Permission denied" in described(PermissionError(errno.EACCES, "Permission denied", "x"))
    assert "check who owns it" in advice(PermissionError(errno.EACCES, "Permission denied", "x"))
    assert advice(OSError(-1, "odd")) == "try again"


def test_a_record_that_may_not_be_read_is_named_and_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever runs the tests as root may read everything, so the system's answer is given here."""

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("larosa.records.checksum.read", refuse)
    assert load_record(tmp_path, {"a": 1}) is None
    assert "Permission denied" in caplog.text
    assert str(tmp_path / "result.json") in caplog.text


def test_a_folder_below_a_file_is_no_matter_of_space(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"Not a directory\): a file stands where a folder is expected"):
        check_output(parse(f"output={tmp_path / 'file' / 'x'}"))
