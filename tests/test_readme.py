"""README's commands are the ones CI runs and the ones that exist."""

from conftest import CONF, ROOT
from larosa_analysis.comparison import methods

README = (ROOT / "README.md").read_text()


def fenced(marker: str) -> str:
    return README.split(f"<!-- {marker} -->\n```\n")[1].split("\n```")[0]


def test_ci_calls_the_test_command() -> None:
    assert fenced("test command") in (ROOT / ".ci" / "run").read_text().splitlines()
    assert fenced("main command").endswith(".venv/bin/python run.py")


def test_every_choice_is_listed() -> None:
    for group in ("model", "method", "schedule", "calibration", "texts", "tokens", "evaluation", "tracking"):
        row = next(line for line in README.splitlines() if line.startswith(f"| `{group}` |"))
        for path in (CONF / group).rglob("*.yaml"):
            assert path.relative_to(CONF / group).with_suffix("").as_posix() in row, (group, path.name)


def test_the_method_table_is_what_the_records_give() -> None:
    records = str(ROOT / "analysis" / "records" / "methods-smollm2.jsonl")
    assert methods.main([records, "--readme", str(ROOT / "README.md"), "--check"]) == 0
