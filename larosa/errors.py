"""The base of every error that larosa raises for a reason a user can act on, and the wording of pydantic's."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError


class LarosaError(Exception):
    """Says what was wrong, what was expected and what to do; `run.py` prints it without a traceback."""


def readable(error: ValidationError) -> str:
    """One line for each problem: the key, what is wrong, what was given."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "configuration"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown key (spelling? `python run.py --help` lists the keys)"
        elif not isinstance(problem["input"], dict | BaseModel):
            message += f" (given: {problem['input']!r})"
        lines.append(f"{key}: {message}")
    return "\n".join(lines)
