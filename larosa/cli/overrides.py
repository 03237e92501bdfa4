"""Command-line words for Hydra's grammar, and Hydra's refusals in plain words.

In values without quotes, Hydra does not read `~`, `=`, brackets, quotes, `#`, `&` and letters beyond ASCII, and it
reads a comma as a sweep. Where a setting is a text, above all a path, such values are quoted here. Where that would be
a guess, the message shows the words to type.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue, OmegaConfBaseException

from larosa.config import former_names, keys
from larosa.config.method import foreign_key
from larosa.config.run import ConfigError, RunConfig
from larosa.records.packaged import packaged

_PAIRS = {"[": "]", "(": ")", "{": "}"}
_PARSER = OverridesParser.create()
_UNKNOWN = re.compile(r"^(?:Could not override|Could not delete from config\.) '([^']+)'")
_TWICE = re.compile(r"^(?:Multiple values for|Could not append to config\. An item is already at) '?([^' ]+?)'?\.\s")


@cache
def settings() -> dict[str, Any]:
    """Name -> type of every setting of a run."""
    return keys.names(RunConfig)


def fit(words: Sequence[str], multirun: bool = False) -> list[str]:
    """The words as Hydra's grammar reads them; words that it reads already are unchanged.

    multirun: commas between values make a sweep. Raises ConfigError for what cannot be meant, or may be meant in
    several ways.
    """
    return [_fit(word, multirun) for word in words]


def word(key: str, value: object) -> str:
    """The override that gives a setting this Python value: text, number, bool, None, or a list of those."""
    return f"{key}={_written(value)}"


def explained(error: Exception) -> str:
    """What Hydra or OmegaConf refuses, with what to do about it."""
    text = str(error).strip()
    key, twice = _UNKNOWN.search(text), _TWICE.search(text)
    if isinstance(error, MissingConfigException):
        return _no_choice(error)
    if twice:
        return f"{twice[1]} is set already: type {twice[1]}=... without the +"
    if "No match in the defaults list" in text and key:
        return _no_group(key[1])
    if key:
        return _no_key(key[1])
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be given: {error.full_key}=VALUE"
    if isinstance(error, InterpolationResolutionError):
        return f"{error.full_key or 'a setting'}: {text.splitlines()[0]} (for a text that holds ${{, write \\${{)"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {text.splitlines()[0]}"
    return _without_search_path(text)


def _fit(given: str, multirun: bool) -> str:
    key, equals, value = given.partition("=")
    if not key or not (equals or given.startswith("~")):
        raise ConfigError(f"{given!r} is no setting: expected {_meant(given)}=VALUE ({keys.HELP})")
    kind = _kind(key.lstrip("+~"))
    if _is_group(key) and value.lower() == "null":
        raise ConfigError(f"{given}: a group takes one of its choices, {key}=NAME ({keys.HELP})")
    if _reads(given, kind, multirun):
        return given
    changed = None
    if keys.is_texts(kind) and value[:1] == "[":
        changed = "[" + ",".join(map(_text, _split(value[1:-1]))) + "]" if value[-1:] == "]" else None
    elif keys.is_texts(kind) or keys.is_text(kind):
        changed = _texts(value, multirun)
    if changed is not None and _reads(f"{key}={changed}", kind, multirun):
        return f"{key}={changed}"
    raise ConfigError(_unreadable(given, key, value, kind))


def _kind(key: str) -> Any:
    """The type of a setting; the choices of a group, and baselines, are names: one or a list."""
    return str | tuple[str, ...] if _is_group(key) or key == "baseline" else keys.type_of(key, settings())


def _is_group(key: str) -> bool:
    group = key.lstrip("+~").partition("@")[0]
    return bool(group) and (packaged("conf") / group).is_dir()


def _exists(value: str) -> bool:
    return bool(value) and os.path.exists(os.path.expanduser(value))  # Path's own may raise


def _texts(value: str, multirun: bool) -> str | None:
    """One text, or several of a sweep; None where a comma leaves it open which it is."""
    parts = _split(value)
    if len(parts) == 1 or _exists(value):
        return _quoted(value)
    return ",".join(map(_text, parts)) if multirun else None


def _reads(given: str, kind: Any, multirun: bool) -> bool:
    """Whether Hydra reads what the setting can hold."""
    override = _parsed(given)
    if override is None:
        return False
    if override.is_sweep_override():
        whole = keys.is_text(kind) and _exists(given.partition("=")[2])
        return multirun and not whole
    value = None if override.is_delete() else override.value()
    if keys.is_texts(kind) and isinstance(value, list):
        return all(isinstance(one, str | QuotedString) for one in value)
    return not keys.is_text(kind) or value is None or isinstance(value, str)


def _parsed(given: str) -> Override | None:
    try:
        return _PARSER.parse_override(given)
    except HydraException:
        return None


def _text(part: str) -> str:
    """One value that is a text: as it is where Hydra reads the same text, else quoted."""
    part = part.strip()
    override = _parsed(f"a={part}")
    if override is not None and not override.is_sweep_override():
        value = override.value()
        if value is None or isinstance(value, str):
            return part
    return _quoted(part)


def _quoted(text: str) -> str:
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def _written(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(one) if isinstance(one, str) else _written(one) for one in value) + "]"
    return str(value)


def _split(value: str) -> list[str]:
    """The parts between commas outside of quotes and brackets."""
    parts, closing, quote = [""], "", ""
    for place, char in enumerate(value):
        if quote:
            quote = "" if char == quote and value[place - 1] != "\\" else quote
        elif char in "'\"" and not parts[-1].strip():
            quote = char
        elif char in _PAIRS and _PAIRS[char] in value[place:]:
            closing += _PAIRS[char]
        elif closing and char == closing[-1]:
            closing = closing[:-1]
        elif char == "," and not closing:
            parts.append("")
            continue
        parts[-1] += char
    return parts


def _unreadable(given: str, key: str, value: str, kind: Any) -> str:
    """The message for a word that is left as it was, with words that can be pasted."""
    if _parsed(f"{key}=x") is None or not key:
        return f"{given!r} is no setting: {key!r} is no name of one, expected {_meant(key)}=VALUE"
    may_be_text, may_be_list = kind is None or keys.is_text(kind), kind is None or keys.is_texts(kind)
    listed = ",".join(map(_text, _split(value.strip("[]"))))
    ways = [f"for one text type {_pasted(key, _quoted(value))}"] * may_be_text
    ways += [f"for a list type {_pasted(key, f'[{listed}]')}"] * may_be_list
    override = _parsed(given)
    if override is not None and override.is_sweep_override():
        return f"{given} names several values: for a run of each add -m{''.join(f'; {way}' for way in ways)}"
    hint = "" if keys.type_of(key, settings()) or not may_be_text else keys.question(keys.alike(key, settings()))
    why = f"cannot be read: brackets or quotes are open, or a special character is outside of quotes{hint}"
    return "; ".join([f"{given} {why}", *ways])


def _pasted(key: str, value: str) -> str:
    """An override in the quotes of a shell."""
    text = f"{key}={value}"
    return shlex.quote(text) if set('"$`\\!') & set(text) else f'"{text}"'


def _meant(key: str) -> str:
    bare = key.strip("+~ ")
    candidates = [bare] if bare and _kind(bare) is not None else keys.alike(bare, settings())
    return candidates[0] if candidates else "NAME"


def _no_key(key: str) -> str:
    """Of a name that the composed settings lack: unknown, or of a section that is not chosen."""
    bare = key.lstrip("+~")
    if now := former_names.renamed(bare):
        return now
    if keys.type_of(bare, settings()) is not None:
        section = bare.rpartition(".")[0]
        if section == "method":
            return foreign_key(bare.removeprefix("method."))
        parts = section.split(".")
        how = f": choose it first, {'='.join(parts)}" if parts[0] == "texts" and len(parts) > 1 else ""
        return f"{bare}: there is no {section} in this run{how or ', it is null: a choice of its group fills it'}"
    if bare.startswith("hydra."):
        return f"{bare}: no such setting of Hydra's (`--cfg hydra` lists them)"
    return f"{bare}: unknown key{keys.question(keys.alike(bare, settings()))} ({keys.HELP})"


def _no_group(key: str) -> str:
    """Of a group that is not in the defaults."""
    if now := former_names.renamed(key):
        return now
    if (packaged("conf") / key).is_dir():
        return f"{key} is added to the settings, not chosen among them: type +{key}=NAME"
    return _no_key(key)


def _no_choice(error: MissingConfigException) -> str:
    """Of a choice that a group does not have."""
    missing = str(error.missing_cfg_file or "").removesuffix(".yaml")
    parts = missing.split("/")
    depth = 2 if parts[0] == "hydra" else 1
    group, name = "/".join(parts[:depth]), "/".join(parts[depth:])
    if not name:
        return _without_search_path(str(error))
    if now := former_names.renamed_choice(group, name):
        return now
    folder = packaged("conf") / group
    choices = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]
    folders_of_choices = {choice.split("/")[0] for choice in choices if "/" in choice}
    known = sorted({*choices, *(error.options or ())} - folders_of_choices | set(choices))
    close = keys.question(get_close_matches(name.lower(), known, 3, 0.5))
    folders = f"; a folder with a model goes to model=local {_pasted('model.path', _text(name))}"
    return (
        f"{group}={name}: no such choice{close}{folders if group == 'model' and '/' in name else ''}; "
        f"there is {', '.join(known)}"
    )


def _without_search_path(text: str) -> str:
    return re.sub(r"\s*Config search path:.*", "", text, flags=re.DOTALL).strip()
