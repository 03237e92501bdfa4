"""What every section of the settings is made of: strict, frozen models and one readable line for each mistake."""

from __future__ import annotations

import os.path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from larosa import keys
from larosa.errors import LarosaError


def _listed(given: Any) -> Any:
    return (given,) if isinstance(given, str) else given


def _at_home(given: str) -> str:
    expanded = os.path.expanduser(given)  # Path's raises where there is no such user
    if expanded.startswith("~"):
        raise ValueError(
            f"{expanded.split('/')[0]} is no user's home folder; for a folder of that name write ./{given}"
        )
    return expanded


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
"""A list of words; a single word stands for a list of one."""
Filename = Annotated[str, Field(min_length=1), AfterValidator(_at_home)]
"""A file or folder; `~` and `~user` at its beginning are expanded."""
Filenames = Annotated[tuple[Filename, ...], BeforeValidator(_listed)]
"""A list of them; a single one stands for a list of one."""
Level = Annotated[float, Field(ge=0.0, lt=1.0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What every generator takes: numpy's 32 bits, and torch's 64, of which bases use 20 for seeds of each layer's own."""


class ConfigError(LarosaError):
    """A setting is unknown, out of range or impossible beside another one."""


class Strict(BaseModel):
    """Base of all sections: unknown keys are refused, values are frozen once checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, given: Any, info: ValidationInfo) -> Any:
        """pydantic would take `true` for 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(given, bool) and keys.is_number(annotation):
            raise ValueError("expected a number")
        return given


def readable(
    error: ValidationError,
    section: type[BaseModel] | None = None,
    spelling: str = keys.HELP,
) -> str:
    """One line for each problem: the key, what is wrong, what was given, and what a misspelt key may have meant.

    section: what was checked, to know its keys; spelling: where they are listed.
    """
    lines = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "configuration"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            meant = keys.question(keys.alike(key, keys.names(section))) if section else ""
            message = f"unknown key{meant or ' (spelling?)'} ({spelling})"
        elif not isinstance(problem["input"], dict | BaseModel):
            message += f" (given: {problem['input']!r})"
        lines.append(f"{key}: {message}")
    return "\n".join(lines)
