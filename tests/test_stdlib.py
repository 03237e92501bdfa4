"""The standard library as a text: what is read, and halves that do not depend on the list of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from larosa.config.run import TextConfig
from larosa.data import stdlib
from larosa.data.overlap import overlap
from larosa.data.stdlib import stdlib_documents, stdlib_files, stdlib_folder, stdlib_identity
from larosa.data.texts import TextError, load_documents
from larosa.experiment.results import text_identity

CODE = [f"package/module{number}.py" for number in range(40)]
LEFT_OUT = [
    "test/test_os.py",
    "unittest/test/case.py",
    "idlelib/run.py",
    "site-packages/torch/nn.py",
    "lib2to3/pgen2/grammar.py",
    "encodings/cp1252.py",
    "pydoc_data/topics.py",
    "html/entities.py",
    "_sysconfigdata__linux_x86_64-linux-gnu.py",
    "config-3.11-x86_64-linux-gnu/python-config.py",
    "__pycache__/os.cpython-311.pyc",
    "package/empty.py",
    "package/data.txt",
]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for name in CODE + LEFT_OUT:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("" if "empty" in name else f"name = {name!r}\n")
    return tmp_path


def names(folder: Path, part: stdlib.Part) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in stdlib_files(part, folder)]


def test_tests_tables_and_what_is_installed_are_left_out(library: Path) -> None:
    assert sorted(names(library, "all")) == sorted(CODE)


def test_halves_are_disjoint_and_complete(library: Path) -> None:
    halves = names(library, "calibration"), names(library, "heldout")
    assert sorted(halves[0] + halves[1]) == sorted(CODE)
    assert min(map(len, halves)) > 10


def test_other_files_move_none_to_the_other_half(library: Path) -> None:
    before = names(library, "calibration"), names(library, "heldout")
    for number in range(40, 80):
        (library / f"package/module{number}.py").write_text("new = True\n")
    for number in range(10):
        (library / CODE[number]).unlink()
    after = names(library, "calibration"), names(library, "heldout")
    for old, new in zip(before, after, strict=True):
        assert [name for name in old if name in new] == [name for name in new if name in CODE]
    assert not set(before[0]) & set(after[1])
    assert not set(before[1]) & set(after[0])


def test_the_split_is_pinned() -> None:
    """Records of other machines hold the same halves."""
    files = {
        "os.py": False,
        "json/decoder.py": False,
        "ast.py": True,
        "typing.py": False,
        "email/message.py": True,
    }
    assert {name: stdlib._is_calibration(stdlib._hash(Path(name))) for name in files} == files


def test_identity_is_the_content_of_the_half(library: Path) -> None:
    before = {part: stdlib_identity(part, library) for part in ("calibration", "heldout")}
    assert before["calibration"]["files"] + before["heldout"]["files"] == len(CODE)
    path = stdlib_files("calibration", library)[0]
    path.write_text("changed = True\n")
    assert stdlib_identity("calibration", library)["sha256"] != before["calibration"]["sha256"]
    assert stdlib_identity("heldout", library) == before["heldout"]


def test_sources_are_decoded_as_python_does(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\r\n".encode("latin-1"))
    assert stdlib_documents("all", tmp_path) == ["# -*- coding: latin-1 -*-\nname = 'é'\n"]


def text(part: str) -> TextConfig:
    return TextConfig.model_validate({"name": "python-stdlib", "source": "python", "part": part})


def test_the_library_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a million tokens in each half, held out from each other."""
    calibration, heldout = (load_documents(text(part)) for part in ("calibration", "heldout"))
    assert min(sum(map(len, calibration)), sum(map(len, heldout))) > 2_000_000
    assert overlap(calibration, heldout, cosine=False).held_out
    behind = text_identity(text("heldout"))["behind"]
    assert behind["files"] == len(heldout)
    assert behind["python"].startswith("3.")
    monkeypatch.setattr(stdlib, "stdlib_folder", lambda: Path("/nowhere"))
    with pytest.raises(TextError, match="python-stdlib is empty"):
        load_documents(text("heldout"))
    assert stdlib_folder() != Path("/nowhere")
