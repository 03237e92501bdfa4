"""What every section of the settings is made of: strict, frozen models and one readable line for each mistake."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from larosa.errors import LarosaError

Names = Annotated[tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)]
"""A list of words; a single word stands for a list of one."""
Level = Annotated[float, Field(ge=0.0, lt=1.0)]


class ConfigError(LarosaError):
    """A setting is unknown, out of range or impossible beside another one."""


class Strict(BaseModel):
    """Base of all sections: unknown keys are refused, values are frozen once checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def readable(error: ValidationError, spelling: str = "`python run.py --help` lists the keys") -> str:
    """One line for each problem: the key, what is wrong, what was given; `spelling` follows an unknown key."""
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "configuration"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"unknown key (spelling? {spelling})"
        elif not isinstance(problem["input"], dict | BaseModel):
            message += f" (given: {problem['input']!r})"
        lines.append(f"{key}: {message}")
    return "\n".join(lines)
