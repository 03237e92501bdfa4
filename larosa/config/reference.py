"""The page docs/configuration.md: every setting with its type, its default in `conf/` and its meaning, from the schema.

    python -m larosa.config.reference > docs/configuration.md

A test compares the page with what this prints.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from larosa.config.choices import choice, choices
from larosa.config.method import METHOD_CONFIGS, METHOD_NAMES, MethodConfig
from larosa.config.run import RunConfig, TextConfig
from larosa.records.packaged import packaged

HEAD = """# Configuration

<!-- Made by `python -m larosa.config.reference > docs/configuration.md`; a test compares. Do not edit. -->

The settings of a run form one tree. `conf/config.yaml` lists its groups. The command line overrides a key by its path:
`larosa run model=llama2-7b sparsity=0.5 method.selector=threshold`. An unknown key, a value out of range or an
impossible combination ends the run with one message, before weights load.

The default of a key is the one that `larosa run` without arguments uses, and below a method the one of the preset
with its name. A key without default belongs to a section that is null there. Other choices of a group set other values,
see their files in `conf/`.
"""
_GROUPS = ("model", "calibration", "schedule", "token_policy", "quantization", "evaluation", "tracking")
_COMMANDS = ("allocation", "diagnostics", "export")
_MISSING: Any = object()
_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


class Row(NamedTuple):
    """One setting, as the page shows it."""

    key: str
    type: str
    default: str
    meaning: str


def page() -> str:
    """The page as Markdown."""
    return "\n".join([HEAD, *(part for title, *parts in sections() for part in (f"{title}\n", *map(_shown, parts)))])


def sections() -> Iterator[list[str | list[Row]]]:
    """The sections of the page: a title, then paragraphs and the rows of tables."""
    defaults = _mapping(packaged("conf") / "config.yaml")
    chosen = {key: value for entry in defaults["defaults"] if isinstance(entry, dict) for key, value in entry.items()}
    fields = RunConfig.model_fields
    yield ["## Run", [_row(key, fields[key], defaults[key]) for key in fields if _is_plain(key, chosen, defaults)]]
    for name in _GROUPS:
        model = _section(fields[name].annotation)
        assert model is not None
        yield [
            f"## {name}", _choices(name, chosen[name]), _prose(model.__doc__),
            list(_rows(model, name, choice(name, chosen[name]))),
        ]  # fmt: skip
    methods = "`name` selects the method. A method has its own keys only; a key of another method is an error."
    yield ["## method", _choices("method", chosen["method"]), methods]
    for name, config in zip(METHOD_NAMES, METHOD_CONFIGS, strict=True):
        yield _method(name, config)
    yield [
        "## texts", _choices("texts", ", ".join(chosen["texts"])),
        "One text or a list: `texts=[wikitext2,c4]`. NAME is the name of a chosen text.",
        list(_rows(TextConfig, "texts.NAME", choice("texts", chosen["texts"][0]))),
    ]  # fmt: skip
    for name in _COMMANDS:
        model = _section(fields[name].annotation)
        assert model is not None
        yield [f"## {name}", _prose(model.__doc__), list(_rows(model, name, defaults[name]))]


def _method(name: str, config: type[MethodConfig]) -> list[str | list[Row]]:
    """The section of one method: its own keys, with the defaults of the preset of its name."""
    rows = []
    for row in _rows(config, "method", choice("method", name)):
        key = row.key.strip("`").split(".")[1]
        if key in config.own_keys() - {"name", "preset"}:
            inherited = MethodConfig.model_fields[key].description
            rows.append(row if row.meaning else row._replace(meaning=_prose(inherited)))
    presets = ", ".join(f"`{preset}`" for preset in choices("method") if choice("method", preset)["name"] == name)
    return [f"### {name}", f"{_prose(config.__doc__)} Presets: {presets}.", rows or "It has no settings."]


def _rows(model: type[BaseModel], prefix: str, defaults: Mapping[str, Any]) -> Iterator[Row]:
    """A row per setting of a section, and of the sections in it."""
    for key, field in model.model_fields.items():
        inner, given = _section(field.annotation, field.metadata), defaults.get(key, _MISSING)
        if inner is None:
            yield _row(f"{prefix}.{key}", field, given)
            continue
        if type(None) in get_args(field.annotation) or field.description:
            yield _row(f"{prefix}.{key}", field, given)
        yield from _rows(inner, f"{prefix}.{key}", given if isinstance(given, dict) else {})


def _row(key: str, field: FieldInfo, given: Any) -> Row:
    value = field.default if given is _MISSING and not field.is_required() else given
    kind = (
        "list of text" if isinstance(value, list) and get_origin(field.annotation) is dict else _type(field.annotation)
    )
    return Row(f"`{key}`", kind + _bounds(field.metadata), _value(value), _prose(field.description))


def _is_plain(key: str, chosen: Mapping[str, Any], defaults: Mapping[str, Any]) -> bool:
    return key in defaults and key not in chosen and not isinstance(defaults[key], dict)


def _section(annotation: Any, metadata: list[Any] | None = None) -> type[BaseModel] | None:
    """The section that a setting holds: itself, an optional one, or the checked keys of a plain dict."""
    given = [annotation, *get_args(annotation), *(getattr(one, "section", None) for one in metadata or [])]
    section_types = [one for one in given if isinstance(one, type) and issubclass(one, BaseModel)]
    is_table = get_origin(annotation) is dict and any(one in get_args(annotation) for one in section_types)
    return section_types[0] if section_types and not is_table else None


def _mapping(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tree


def _choices(group: str, default: str) -> str:
    return f"`{group}=` takes {', '.join(f'`{name}`' for name in choices(group))}. Default: `{default}`."


def _shown(part: str | list[Row]) -> str:
    if isinstance(part, str):
        return f"{part}\n"
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(entry.replace("|", "\\|") for entry in row) + " |" for row in part]
    return "\n".join(lines) + "\n"


def _type(annotation: Any) -> str:
    """The type in words."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0]) + _bounds(parts[1:])
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in parts)
    if origin is tuple:
        return f"list of {_type(parts[0])}"
    if annotation is type(None):
        return "`null`"
    section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return "mapping" if section or origin is dict else _NAMES[annotation]


_NAMES: dict[Any, str] = {str: "text", int: "integer", float: "number", bool: "`true` or `false`"}


def _bounds(metadata: Iterable[Any]) -> str:
    """The range of a number, in signs."""
    flat = [one for given in metadata for one in (given.metadata if isinstance(given, FieldInfo) else [given])]
    bounds = [(sign, getattr(one, name, None)) for one in flat for name, sign in _SIGNS.items()]
    shown = ", ".join(f"{sign} {bound:.10g}" for sign, bound in bounds if bound is not None)
    return f" ({shown})" if shown else ""


def _value(value: Any) -> str:
    if value is _MISSING:
        return ""
    if value == "???":
        return "must be given"
    if isinstance(value, dict):
        return "see the keys below" if value else "`{}`"
    if isinstance(value, str):
        return f"`{value}`" if value.isprintable() else f"`{json.dumps(value)}`"
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix('...').strip()}`"


def _prose(text: str | None) -> str:
    """A docstring on one line, without roles."""
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join((text or "").split()))


if __name__ == "__main__":
    print(page(), end="")
