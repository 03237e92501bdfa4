"""The commands behind `larosa`: name, module, one line; and how a command is typed where this process runs.

`python run.py` and `python -m MODULE` do the same in a checkout. Nothing heavy is imported here.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from larosa.records.packaged import in_checkout


@dataclass(frozen=True)
class Command:
    """One command; its module has `main()`, which reads `sys.argv[1:]`."""

    module: str
    summary: str
    usage: str | None = None
    """What follows the name; None where the module's own parser says it."""


_SETTINGS = "[group=NAME ...] [key=VALUE ...]"
COMMANDS = {
    "run": Command("larosa.__main__", "measure methods on a model; with -m a sweep"),
    "export": Command("larosa.cli.export", "write a sparse model to a folder that larosa.load reads", _SETTINGS),
    "compare": Command(
        "larosa.cli.compare",
        "measure methods at equal sparsity and at equal bytes",
        f"LIST.yaml {_SETTINGS} [--records FILE ...]",
    ),
    "allocate": Command("larosa.cli.allocate", "find a schedule: levels per layer and site", _SETTINGS),
    "diagnose": Command("larosa.cli.diagnose", "measure what figures need beyond a record", f"KIND {_SETTINGS}"),
    "eval": Command(
        "larosa.cli.lm_eval",
        "score a sparse model by lm-eval's own command line",
        "--model larosa --tasks TASKS --model_args pretrained=MODEL,sparsity=LEVEL,calibration=TEXT[,key=VALUE ...]",
    ),
    "requests": Command(
        "larosa.cli.requests", "record lm-eval's requests, to score them without lm-eval", f"FILE.json.gz {_SETTINGS}"
    ),
    "bench": Command("larosa.decode.benchmark", "time the decoder at a model's true shape, random weights"),
    "report": Command("larosa_analysis.report.__main__", "make tables, figures and a report of a folder of runs"),
}


def from_console() -> bool:
    """Whether the console command `larosa` started this process."""
    return any(Path(program).name in ("larosa", "larosa.exe") for program in sys.argv[:1])


def typed(name: str) -> str:
    """How the command `name` is typed again: by its module only where a checkout's module was started."""
    if from_console() or not in_checkout():
        return f"larosa {name}"
    return "python run.py" if name == "run" else f"python -m {COMMANDS[name].module.removesuffix('.__main__')}"


def pip_install(extra: str) -> str:
    """The command that adds an extra of this project to the installation."""
    return f"pip install -c constraints.txt -e '.[{extra}]'" if in_checkout() else f"pip install 'larosa[{extra}]'"


def asks_for_help(words: list[str]) -> bool:
    """Whether one of the words does."""
    return not {"-h", "--help"}.isdisjoint(words)


def help_of(name: str) -> str:
    """The help of a command without a parser: its usage, and what its module says, which is read and not imported."""
    command = COMMANDS[name]
    spec = find_spec(command.module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {command.module!r}", name=command.module)
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return f"usage: {typed(name)} {command.usage}\n\n{text}\n\nGroups and keys: `{typed('run')} --help`."
