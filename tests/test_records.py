"""`result.json`: what is changed, damaged or incomplete is named and measured again; what is rescued is found again."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_config import parse
from test_pipeline import overrides, write_text  # noqa: F401  # a fixture

from larosa.cli import compare, launch
from larosa.cli.diagnose import diagnose
from larosa.experiment import measure, pipeline, plan_runs, record_file, results, runner, session
from larosa.experiment.failures import RunsFailedError
from larosa.records import checksum, commit
from larosa_analysis import compact

Record = dict[str, Any]
Change = Callable[[Record], object]


@pytest.fixture
def words(overrides: list[str]) -> list[str]:  # noqa: F811
    return [*overrides, "method=magnitude", "baseline=none", "calibration.sequences=2", "calibration.probe_sequences=1"]


@pytest.fixture
def path(words: list[str]) -> Path:
    """A record of a real run."""
    pipeline.run(parse(*words))
    return planned(words).folder / "result.json"


def planned(words: list[str]) -> plan_runs.Cell:
    return list(plan_runs.plan_runs(parse(*words)).values())[-1]


def changed(path: Path, change: Change, seal: bool) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(checksum.sealed(record) if seal else record))


def other_perplexity(record: Record) -> None:
    record["metrics"]["perplexity"]["text"]["perplexity"] += 0.1


CHANGES: dict[str, tuple[Change, bool, str]] = {
    "a digit": (other_perplexity, False, "checksum does not match"),
    "no metrics": (lambda r: r.update(metrics={}), False, "checksum does not match"),
    "an older larosa": (lambda r: r.pop("checksum"), False, "no checksum: an older larosa"),
    "a checksum of another type": (lambda r: r.update(checksum=3), False, "checksum does not match"),
    "NaN": (lambda r: r["metrics"]["parity"].update(bound=float("nan")), False, "cannot have been written so"),
    "sealed without metrics": (lambda r: r.update(metrics={}), True, "metrics.accounting"),
    "sealed without a text": (lambda r: r["metrics"].update(perplexity={}), True, "lacks perplexity of text"),
    "sealed without tokens": (lambda r: r["data"].update(texts={}), True, "lacks the tokens of text"),
    "sealed without errors": (lambda r: r["metrics"].pop("errors"), True, "lacks errors"),
    "sealed with text for a number": (
        lambda r: r["metrics"]["perplexity"]["text"].update(perplexity="12"), True, "perplexity.text.perplexity",
    ),
    "sealed with a list": (lambda r: r.update(git=[]), True, "git"),
    "sealed with no blocks": (
        lambda r: r["metrics"]["perplexity"]["text"].update(block_nll_nats=[]), True, "block_nll_nats",
    ),
    "sealed with a level of 1.5": (
        lambda r: r["metrics"]["accounting"].update(target_sparsity=1.5), True, "metrics.accounting.target_sparsity",
    ),
    "sealed under another identity": (lambda r: r.update(identity="0" * 16), True, "another identity"),
    "sealed with another method": (
        lambda r: r["identity_inputs"]["method"].update(name="teal"), True, "another identity",
    ),
    "sealed with another schema": (lambda r: r.update(schema=1), True, "schema 1"),
}  # fmt: skip

CONTENTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "not JSON"),
    "truncated": (lambda content: content[: len(content) // 2], "not JSON"),
    "twice": (lambda content: content + content, "not JSON"),
    "zeros": (lambda content: b"\0" * len(content), "not JSON"),
    "no UTF-8": (lambda content: content.replace(b"magnitude", b"magn\xfftude"), "not UTF-8"),
    "a list": (lambda _: b"[]", "found list"),
    "null": (lambda _: b"null", "found null"),
    "a number": (lambda _: b"3", "found int"),
    "nested without end": (lambda _: b"[" * 200_000, "not JSON"),
    "a flipped bit": (lambda content: content.replace(b'"seed": 0', b'"seed": 1'), "checksum does not match"),
    "a key twice": (lambda content: content.replace(b'"schema": 2', b'"schema": 1, "schema": 3', 1), "does not match"),
}


def refused(path: Path, words: list[str], caplog: pytest.LogCaptureFixture, why: str) -> None:
    """The record is named on one line, once, however often a run looks."""
    cell = planned(words)
    with caplog.at_level(logging.WARNING):
        assert results.load_record(cell.folder, cell.identity) is None
        assert results.load_record(cell.folder, cell.identity) is None
    (line,) = caplog.messages
    assert line.startswith(f"{path} is damaged (")
    assert line.endswith("): measured again")
    assert why in line
    assert "\n" not in line
    assert len(line) < len(str(path)) + 200


def test_damage_is_named_once_and_not_believed(path: Path, words: list[str], caplog: pytest.LogCaptureFixture) -> None:
    content = path.read_bytes()
    for change, seal, why in CHANGES.values():
        path.write_bytes(content)
        changed(path, change, seal)
        refused(path, words, caplog, why)
        caplog.clear()
    for damage, why in CONTENTS.values():
        path.write_bytes(damage(content))
        refused(path, words, caplog, why)
        caplog.clear()
    path.write_bytes(content)
    cell = planned(words)
    assert results.load_record(cell.folder, cell.identity) == {
        key: value for key, value in json.loads(content).items() if key != "checksum"
    }
    assert not caplog.messages


@pytest.mark.parametrize("damage", ["a folder", "a full folder", "a link to nowhere", "unreadable", "a digit"])
def test_a_damaged_record_is_measured_again(
    damage: str, path: Path, words: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads(path.read_text())
    if damage == "a digit":
        changed(path, other_perplexity, False)
    elif damage == "unreadable":
        true_read, damaged = Path.read_text, path.stat().st_ino

        def refuse(own: Path, *more: Any, **given: Any) -> str:
            if own == path and path.stat().st_ino == damaged:
                raise PermissionError(errno.EACCES, "Permission denied", str(own))
            return true_read(own, *more, **given)

        monkeypatch.setattr(Path, "read_text", refuse)
    else:
        path.unlink()
        if damage == "a link to nowhere":
            path.symlink_to(path.parent / "gone")
        else:
            path.mkdir()
            if damage == "a full folder":
                (path / "mine.txt").write_text("kept")
    with caplog.at_level(logging.INFO):
        (record,) = pipeline.run(parse(*words)).values()
    assert record["metrics"] == before["metrics"]
    assert json.loads(path.read_text())["checksum"] == checksum.checksum(record)
    named = [line for line in caplog.messages if f"{path} is damaged" in line]
    assert len(named) == (0 if damage == "a link to nowhere" else 1)
    kept = [own.read_text() for own in path.parent.rglob("mine.txt")]
    assert kept == (["kept"] if damage == "a full folder" else [])
    caplog.clear()
    pipeline.run(parse(*words))
    assert not [line for line in caplog.messages if "is damaged" in line]


def full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], None]:
    """Records cannot be written below `folder` until the answer is called; the temporary folder is apart."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    true_write = record_file.write_atomically

    def refuse(path: Path, content: bytes) -> None:
        if path.is_relative_to(folder):
            raise OSError(errno.ENOSPC, "No space left on device")
        true_write(path, content)

    monkeypatch.setattr(record_file, "write_atomically", refuse)
    return lambda: monkeypatch.setattr(record_file, "write_atomically", true_write)


@pytest.mark.parametrize("moved", ["left there", "moved", "moved and renamed"])
def test_a_rescued_record_is_found_again(
    moved: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = planned(words).folder
    emptied = full_disk(folder, monkeypatch, tmp_path)
    with pytest.raises(RunsFailedError, match=r"No space left.*was saved as .*larosa-[0-9a-f]{16}\.json"):
        pipeline.run(parse(*words))
    (rescue,) = tmp_path.glob("larosa-*.json")
    assert (folder / "failed.json").exists()
    if moved != "left there":
        shutil.move(rescue, folder / ("result.json" if moved == "moved and renamed" else rescue.name))
    monkeypatch.setattr(runner, "measure", lambda *_: pytest.fail("measured again"))
    if moved == "left there":  # on a disk that is still full
        assert pipeline.run(parse(*words))
        assert rescue.exists()
    emptied()
    (record,) = pipeline.run(parse(*words)).values()
    assert checksum.read(folder / "result.json") == record
    assert not rescue.exists()
    assert not (folder / rescue.name).exists()
    assert not (folder / "failed.json").exists()


def test_a_rescue_that_others_could_have_left_is_not_believed(
    path: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    cell = planned(words)
    rescue = tmp_path / f"larosa-{json.loads(path.read_text())['identity']}.json"
    path.rename(rescue)
    monkeypatch.setattr(os, "getuid", lambda: rescue.stat().st_uid + 1)
    assert results.load_record(cell.folder, cell.identity) is None
    assert rescue.exists()


def test_neither_place_can_be_written(words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full_disk(tmp_path, monkeypatch, tmp_path / "too")
    with pytest.raises(results.RecordError, match="neither could the temporary folder"):
        results.save_record(tmp_path, {"identity": "abc"})

    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    with pytest.raises(results.RecordError, match="neither could the temporary folder"):
        results.save_record(tmp_path, {"identity": "abc"})


def test_other_versions_are_named(
    path: Path, words: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = record_file.versions()
    monkeypatch.setattr(record_file, "versions", lambda: here | {"torch": "99.1", "wandb": "99.2"})
    pipeline.run(parse(*words))
    (line,) = [line for line in caplog.messages if "force=true" in line and "measured with" in line]
    assert f"torch {here['torch']} (here 99.1)" in line
    assert "wandb" not in line


def test_files_that_change_while_they_are_measured(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_perplexity = measure.perplexity

    def slow(*given: Any) -> Any:
        write_text(tmp_path / "b.txt", 9)
        return true_perplexity(*given)

    folder = planned(words).folder
    monkeypatch.setattr(measure, "perplexity", slow)
    with pytest.raises(RunsFailedError, match=r"files changed while it was measured \(texts\)"):
        pipeline.run(parse(*words))
    assert not (folder / "result.json").exists()


def test_a_bench_is_not_shared_by_texts_of_other_content(words: list[str], tmp_path: Path) -> None:
    config, shared = parse(*words), session.Sessions()
    first = shared.open(config)
    assert shared.open(config) is first
    write_text(tmp_path / "b.txt", 9)
    second = shared.open(config)
    assert second.texts["text"].sha256 != first.texts["text"].sha256
    assert session.session_settings(config) != session.session_settings(parse(*words, "seed=1"))
    assert compare.Sessions is session.Sessions


def test_an_inspection_that_changed_is_made_again(
    words: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = parse(*words, "diagnostics.tokens=20", "diagnostics.surface_tokens=4")
    path = diagnose("surface", config)
    content = path.read_text()
    assert diagnose("surface", config) == path
    for other in (content.replace('"layer":1', '"layer":0'), "[]", "null", content[:-9], "{}"):
        path.write_text(other)
        caplog.clear()
        diagnose("surface", config)
        assert [line for line in caplog.messages if f"{path} is damaged" in line and "measured again" in line]
        assert checksum.read(path)["values"] == json.loads(content)["values"]


def test_a_changed_record_reaches_no_table(
    path: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.run(parse(*words, "sparsity=0.5"))
    runs, out = tmp_path / "runs", tmp_path / "out.jsonl"
    changed(path, other_perplexity, False)
    assert compact.main([str(runs), str(out)]) == 0
    assert f"{path} is excluded: its checksum does not match" in capsys.readouterr().err
    (line,) = out.read_text().splitlines()
    assert json.loads(line)["config"]["sparsity"] == 0.5
    out.write_text(line.replace('"sparsity":0.5', '"sparsity":0.6') + "\n")
    assert compact.main([str(runs), str(out)]) == 2
    assert "out.jsonl, line 1: its checksum does not match" in capsys.readouterr().err


# --- the commit of larosa's code ---


def git(folder: Path, *words: str) -> str:
    own = ["git", "-C", str(folder), "-c", "user.name=x", "-c", "user.email=x@example.org", *words]
    return subprocess.run(own, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `larosa` inside somebody's repository, who has not committed it."""
    monkeypatch.delenv("LAROSA_COMMIT", raising=False)
    package = tmp_path / "theirs" / "venv" / "larosa" / "records"
    package.mkdir(parents=True)
    (package / "commit.py").write_text("code")
    (tmp_path / "theirs" / "work.py").write_text("theirs")
    git(tmp_path / "theirs", "init", "-q")
    git(tmp_path / "theirs", "add", "work.py")
    git(tmp_path / "theirs", "commit", "-qm", "theirs")
    monkeypatch.setattr(commit, "__file__", str(package / "commit.py"))
    return tmp_path / "theirs"


def test_somebody_elses_commit_is_not_larosas(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = {"commit": None, "dirty": None}
    assert commit.git_state() == nothing
    (installed / ".gitignore").write_text("venv\n")
    assert commit.git_state() == nothing
    monkeypatch.setenv("GIT_DIR", str(installed / ".git"))  # as inside one of their hooks
    monkeypatch.setenv("GIT_WORK_TREE", str(installed / "venv"))
    assert commit.git_state() == nothing
    monkeypatch.setenv("LAROSA_COMMIT", "abc")
    assert commit.git_state() == {"commit": "abc", "dirty": None}


def test_a_repository_that_tracks_larosa_tells_its_commit(installed: Path) -> None:
    git(installed, "add", "-f", "venv")
    git(installed, "commit", "-qm", "vendored")
    assert commit.git_state() == {"commit": git(installed, "rev-parse", "HEAD"), "dirty": False}
    (installed / "work.py").write_text("no matter of larosa's")
    assert commit.git_state()["dirty"] is False
    (installed / "venv" / "larosa" / "records" / "commit.py").write_text("other code")
    assert commit.git_state()["dirty"] is True


def test_a_single_run_names_a_damaged_record_on_one_line(
    path: Path, words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text("[]")
    with caplog.at_level(logging.INFO):
        launch._made(parse(*words), "")
    assert [line for line in caplog.messages if "is damaged" in line] == [
        f"{path} is damaged (expected a JSON object, found list): measured again"
    ]
