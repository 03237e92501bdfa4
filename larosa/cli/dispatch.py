"""The console command `larosa COMMAND ...`: the commands of :mod:`larosa.commands`, each imported when it is named."""

from __future__ import annotations

import argparse
import os
import sys
from difflib import get_close_matches
from importlib import import_module

import larosa
from larosa.commands import COMMANDS, asks_for_help, help_of

_EXAMPLES = """examples:
  larosa run model=smollm2-135m sparsity=0.4
  larosa report runs

`larosa COMMAND --help` says more about each."""


def main() -> None:
    """Run the command that is named; its exit status is the process's."""
    try:
        sys.exit(_run(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("interrupted: what is recorded stays, and the same command goes on from there")
    except BrokenPipeError:  # `larosa --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _run(words: list[str]) -> int | None:
    parser = _parser()
    if not words:
        parser.print_help(sys.stderr)
        return 2
    first, *rest = words
    if first.startswith("-"):
        parser.parse_args([first])
    if first not in COMMANDS:
        parser.exit(2, f"ERROR: {_unknown(first)}\n")
    if COMMANDS[first].usage is not None and asks_for_help(rest[:1]):
        print(help_of(first))
        return 0
    del sys.argv[1]
    status: int | None = import_module(COMMANDS[first].module).main()
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="larosa",
        description="Training-free activation sparsity in LLM decoding: measure, compare, decode.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"larosa {larosa.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.summary, add_help=False)
    return parser


def _unknown(word: str) -> str:
    """What a first word that names no command may have meant."""
    if "=" in word:
        return f"{word} follows a command: larosa run {word} ..."
    close = get_close_matches(word, COMMANDS, 1)
    meant = f"; did you mean {close[0]}?" if close else f"; expected one of {', '.join(COMMANDS)}"
    return f"larosa has no command {word!r}{meant} (`larosa --help` lists them)"
