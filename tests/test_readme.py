"""README's commands are the ones CI runs and the ones that exist; its tables are what the records give."""

import pytest

from conftest import ROOT
from larosa_analysis import build

README = (ROOT / "README.md").read_text()


def fenced(marker: str) -> str:
    return README.split(f"<!-- {marker} -->\n```\n")[1].split("\n```")[0]


def test_ci_calls_the_test_command() -> None:
    assert fenced("test command") in (ROOT / ".ci" / "run").read_text().splitlines()
    assert fenced("main command").endswith(".venv/bin/larosa run")


def test_the_tables_of_readme_and_docs_are_what_the_records_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--readme", str(ROOT / "README.md"), "--docs", str(ROOT / "docs"), "--check"]) == 0
    said = capsys.readouterr().out
    assert "README.md: its tables are what" in said
    assert "results.md: its tables are what" in said
    for name in ("quality", "speed"):
        assert f"<!-- table: {name} -->" in README
