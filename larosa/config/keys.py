"""The names of all settings, as the schema has them: the kind of each, and those that a mistaken one may have meant."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel

from larosa.commands import typed

HELP = f"`{typed('run')} --help` lists the settings"
ANY = "*"
"""Stands in a name for a part that the user chooses: `texts.*.files`."""


def names(section: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type of every setting of a section and of the sections in it."""
    known: dict[str, Any] = {}
    # A method takes its own keys, without the others'.
    accepted = getattr(section, "own_keys", lambda: frozenset(section.model_fields))()
    for name, field in section.model_fields.items():
        if name not in accepted:
            continue
        key = prefix + name
        known[key] = field.annotation
        for place, inner in _sections(key, [field.annotation, *field.metadata]):
            known |= names(inner, f"{place}.")
    return known


def _sections(key: str, annotations: list[Any]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The sections that a setting may hold, and where: itself, or below names of one's own."""
    for given in annotations:
        for part in _alternatives(getattr(given, "section", given)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield key, part
            elif get_origin(part) is dict:
                yield from _sections(f"{key}.{ANY}", [get_args(part)[1]])


def _alternatives(annotation: Any) -> list[Any]:
    """The members of a union, without what `Annotated` adds."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, types.UnionType):
        return [one for part in get_args(annotation) for one in _alternatives(part)]
    return [annotation]


def type_of(key: str, known: Mapping[str, Any]) -> Any:
    """The type of a setting; None for a name that the schema does not have."""
    parts = key.split(".")
    for name, annotation in known.items():
        pattern = name.split(".")
        if len(pattern) == len(parts) and all(a in (b, ANY) for a, b in zip(pattern, parts, strict=True)):
            return annotation
    return None


def is_text(annotation: Any) -> bool:
    """Whether a setting of this type may be any text."""
    return str in _alternatives(annotation)


def is_texts(annotation: Any) -> bool:
    """Whether a setting of this type is a list of any texts."""
    lists = [part for part in _alternatives(annotation) if get_origin(part) is tuple]
    return any(is_text(get_args(part)[0]) for part in lists)


def is_number(annotation: Any) -> bool:
    """Whether a setting of this type may be a number and may not be true or false."""
    kinds = _alternatives(annotation)
    return bool({int, float} & {one for one in kinds if isinstance(one, type)}) and bool not in kinds


def alike(key: str, known: Mapping[str, Any]) -> list[str]:
    """At most three settings that a name may have meant, the likeliest first."""
    parts = key.split(".")
    concrete = ["".join(_filled(name.split("."), parts)) for name in known]
    concrete = [name for name in concrete if ANY not in name]
    last = {name: name.rpartition(".")[2] for name in concrete}
    same = [name for name in concrete if last[name] == parts[-1]]
    close = get_close_matches(key, concrete, 3, 0.8)
    near = get_close_matches(parts[-1], sorted(set(last.values())), 2, 0.75)
    by_last = [name for ending in near for name in concrete if last[name] == ending]
    beside = [name for name in by_last if name.rpartition(".")[0] == key.rpartition(".")[0]]
    candidates = [*beside, *close, *same] if same else [*beside, *close, *by_last]
    return [name for name in dict.fromkeys(candidates) if name != key][:3]


def _filled(name: list[str], given: list[str]) -> Iterator[str]:
    """The name with the user's own parts where it takes any."""
    for place, part in enumerate(name):
        yield "." * bool(place) + (given[place] if part == ANY and place < len(given) else part)


def question(names: list[str]) -> str:
    """`; did you mean a, b or c?`, or nothing."""
    if not names:
        return ""
    return f"; did you mean {' or '.join([', '.join(names[:-1]), names[-1]] if len(names) > 1 else names)}?"
