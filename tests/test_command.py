"""The console command `larosa`: its help, its messages, and that what it names is there and light."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from conftest import ROOT
from larosa import commands
from larosa.commands import COMMANDS, help_of, pip_install, typed

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in (".", "kernels", "analysis"))}
HEAVY = ("torch", "transformers", "matplotlib", "pandas", "lm_eval")
SCRIPT = """import sys
from larosa.cli.dispatch import main
try:
    main()
finally:
    loaded = {name.partition(".")[0] for name in sys.modules} & set(HEAVY)
    print("loaded:", *sorted(loaded), file=sys.stderr)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """What an installation puts into bin/, which says in addition what has been imported."""
    path = tmp_path / "bin" / "larosa"
    path.parent.mkdir()
    path.write_text(f"HEAVY = {(*HEAVY, 'hydra')!r}\n{SCRIPT}")
    return path


def larosa(script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=script.parent, env=ENVIRONMENT
    )


def test_help_lists_the_commands_at_once(script: Path) -> None:
    start = time.monotonic()
    done = larosa(script, "--help")
    assert time.monotonic() - start < 5  # 0.2 s where nothing else runs
    assert done.returncode == 0
    assert done.stderr == "loaded:\n"
    for name, command in COMMANDS.items():
        assert f"{name} {command.summary}" in " ".join(done.stdout.split())
    assert done.stdout.count("\n  larosa ") == 2
    assert larosa(script, "--version").stdout.startswith("larosa 0.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["comparre"], "larosa has no command 'comparre'; did you mean compare?"),
        (["xyzzy"], f"expected one of {', '.join(COMMANDS)}"),
        (["model=tiny-llama", "sparsity=0.4"], "larosa run model=tiny-llama"),
        (["--hel"], "unrecognized arguments: --hel"),
        ([], "usage: larosa"),
    ],
)
def test_what_is_no_command_ends_in_one_message(words: list[str], message: str, script: Path) -> None:
    done = larosa(script, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert done.stderr.endswith("loaded:\n")


ABSENT = pytest.mark.skipif(find_spec("larosa.cli.export") is None, reason="larosa.cli.export is not merged yet")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[ABSENT] * (name == "export")) for name in COMMANDS])
def test_every_command_has_a_help_in_its_own_name(name: str, script: Path) -> None:
    done = larosa(script, name, "--help")
    assert done.returncode == 0, done.stderr
    start = f"usage: larosa {name}" if name != "run" else "One run:    larosa run model=tiny-llama"
    assert done.stdout.startswith(start)
    assert "python -m" not in done.stdout
    assert done.stderr == ("loaded: hydra\n" if name == "run" else "loaded:\n")


def test_a_module_s_help_names_the_module() -> None:
    assert help_of("compare").startswith("usage: python -m larosa.cli.compare LIST.yaml ")
    assert "`python run.py --help`" in help_of("compare")


def test_a_command_is_typed_again_as_it_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    assert typed("run") == "python run.py"
    assert typed("report") == "python -m larosa_analysis.report"
    assert all(find_spec(typed(name).removeprefix("python -m ")) for name in COMMANDS if name not in ("run", "export"))
    assert pip_install("ray") == "pip install -c constraints.txt -e '.[ray]'"
    with monkeypatch.context() as console:
        console.setattr(sys, "argv", ["/some/where/bin/larosa", "compare"])
        assert typed("run") == "larosa run"
    monkeypatch.setattr(commands, "in_checkout", lambda: False)
    assert typed("eval") == "larosa eval"
    assert pip_install("ray") == "pip install 'larosa[ray]'"


def test_mistakes_keep_their_message_and_status(script: Path) -> None:
    done = larosa(script, "run", "model=tiny-lama")
    assert done.returncode == 2
    assert "did you mean tiny-llama" in done.stderr
    assert done.stderr.endswith("loaded: hydra\n")
    done = larosa(script, "run", "modell=x")
    assert "(`larosa run --help` lists the settings)" in done.stderr
    done = larosa(script, "report", "nowhere")
    assert done.returncode == 2
    assert "no result.json below nowhere" in done.stderr


def test_an_interruption_and_a_closed_pipe_end_without_traceback(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from larosa.cli import dispatch

    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["larosa", "compare"])
    monkeypatch.setattr(dispatch, "import_module", interrupted)
    with pytest.raises(SystemExit, match="interrupted: what is recorded stays"):
        dispatch.main()
    piped = f"{sys.executable} -c 'from larosa.cli.dispatch import main; main()' compare --help | head -1"
    cut = subprocess.run(["sh", "-c", piped], capture_output=True, text=True, timeout=60, check=True, env=ENVIRONMENT)
    assert cut.stderr == ""


def test_the_pages_name_commands_that_there_are() -> None:
    """In code of pages, and in the indented examples of docstrings."""
    pages = "".join(path.read_text() for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
    lines = [line for block in pages.split("\n```")[1::2] for line in block.splitlines()]
    for folder in ("larosa", "analysis/larosa_analysis"):
        for path in (ROOT / folder).rglob("*.py"):
            lines += [line for line in path.read_text().splitlines() if line.startswith("    larosa ")]
    named = {found[1] for line in lines if (found := re.match(r"(?: {4}|\.venv/bin/)?larosa (\w+)\b", line))}
    assert {"run", "compare", "allocate", "eval", "report"} <= named <= set(COMMANDS)


def test_getting_started_lists_every_command_and_its_module() -> None:
    page = (ROOT / "docs" / "getting_started.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `larosa ")]
    for row, name in zip(rows, COMMANDS, strict=True):
        assert row.startswith(f"| `larosa {name}` |")
        assert f"`{typed(name)}`" in row
