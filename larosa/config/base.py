"""Base of every section of the settings: strict, frozen models, and one readable line per mistake."""

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

from larosa.config import former_names, keys
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
"""A list of names; a single name stands for a list of one."""
Filename = Annotated[str, Field(min_length=1), AfterValidator(_at_home)]
"""A file or folder; `~` and `~user` at its beginning are expanded."""
Filenames = Annotated[tuple[Filename, ...], BeforeValidator(_listed)]
"""A list of files or folders; a single one stands for a list of one."""
Level = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A sparsity as a fraction."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""The range of numpy's generators: 32 bits. torch takes 64 bits, of which bases use 20 for a seed per layer."""


class ConfigError(LarosaError):
    """A setting is unknown, out of range or impossible beside another one."""


class Strict(BaseModel):
    """Base of all sections: unknown keys are refused, values are frozen once checked."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, given: Any, info: ValidationInfo) -> Any:
        """pydantic would take `true` for 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(given, bool) and keys.is_number(annotation):
            raise ValueError("expected a number")
        return given


def _path(loc: tuple[int | str, ...]) -> list[str]:
    """Where a problem is, without the name by which pydantic tells the methods apart (`method.larosa.form`)."""
    parts = [str(part) for part in loc]
    tag = {"method": 1, "baseline": 2}.get(parts[0] if parts else "", len(parts))
    return parts[:tag] + parts[tag + 1 :]


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
        key = ".".join(_path(problem["loc"])) or "configuration"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden" and (now := former_names.renamed(key)):
            message = now
        elif problem["type"] == "extra_forbidden":
            meant = keys.question(keys.alike(key, keys.names(section))) if section else ""
            message = f"unknown key{meant or ' (spelling?)'} ({spelling})"
        elif not isinstance(problem["input"], dict | BaseModel):
            now = former_names.renamed_value(key, problem["input"])
            message += f" (given: {problem['input']!r}{f'; {now}' if now else ''})"
        lines.append(f"{key}: {message}")
    return "\n".join(lines)
