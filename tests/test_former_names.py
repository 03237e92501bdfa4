"""Former keys, presets and values end in one error that names the new one; a method refuses the keys of another one."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from conftest import CONF
from larosa.cli.command import read_settings
from larosa.cli.overrides import settings
from larosa.config import keys
from larosa.config.choices import choice, choices
from larosa.config.former_names import CHOICES, KEYS, VALUES
from larosa.config.method import METHOD_CONFIGS, METHOD_NAMES, MethodConfig
from larosa.config.run import ConfigError, RunConfig

FOREIGN = [
    (name, key)
    for name, config in zip(METHOD_NAMES, METHOD_CONFIGS, strict=True)
    for key in MethodConfig.model_fields
    if key not in config.own_keys()
]


def refusal(*overrides: str) -> str:
    """The one message that these settings end in."""
    with pytest.raises(ConfigError) as refused:
        read_settings(list(overrides))
    return str(refused.value)


@pytest.mark.parametrize("prefix", ["", "+"])
@pytest.mark.parametrize("key", KEYS)
def test_a_former_key_names_the_new_one(key: str, prefix: str) -> None:
    message = refusal(
        f"{prefix}{key}=1", *["evaluation=speed", "model.dtype=float32"] * key.startswith("evaluation.speed")
    )
    assert message.count("\n") == 0
    assert f"{key} is now {KEYS[key]}" in message


@pytest.mark.parametrize("key", ["tokens.n", "inspect.layer", "inspect.levels", "method.top_k.ties"])
def test_the_keys_of_a_former_section_do_too(key: str) -> None:
    section = max((one for one in KEYS if key.startswith(one)), key=len)
    assert f"{key} is now {KEYS[section]}" in refusal(f"{key}=1")


def test_the_new_keys_exist() -> None:
    for named in KEYS.values():
        for key in named.split(" and "):
            assert key in settings() or key.removeprefix("method.") in MethodConfig.model_fields, key


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_a_former_choice_names_the_new_one(group: str, name: str) -> None:
    new = CHOICES[group, name]
    assert new in choices(group)
    assert refusal(f"{group}={name}") == f"{group}={name} is now {group}={new}"


def test_a_former_method_as_a_baseline_names_the_new_one() -> None:
    assert "method=larosa/blocks is now method=larosa/block_diagonal" in refusal("baseline=[dense,larosa/blocks]")


@pytest.mark.parametrize(("key", "value"), VALUES)
def test_a_former_value_names_the_new_one(key: str, value: str) -> None:
    message = refusal(f"{key}={value}")
    assert f"{key}: " in message
    assert message.count("\n") == 0
    assert f"{value} is now called {VALUES[key, value]}" in message


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """The settings of a run as a plain tree."""
    return read_settings(["texts=none", "baseline=[]"]).model_dump(mode="json")


@pytest.mark.parametrize(("method", "key"), FOREIGN)
def test_a_method_refuses_the_key_of_another_one_and_says_whose_it_is(
    method: str, key: str, composed: dict[str, Any]
) -> None:
    owners = [name for name, config in zip(METHOD_NAMES, METHOD_CONFIGS, strict=True) if key in config.own_keys()]
    RunConfig.parse(composed | {"method": choice("method", method)})
    with pytest.raises(ConfigError) as refused:
        RunConfig.parse(composed | {"method": choice("method", method) | {key: 1}})
    assert f"{method} has no setting {key}, which belongs to {', '.join(owners)}" in str(refused.value)


@pytest.mark.parametrize("prefix", ["", "+"])
def test_the_command_line_refuses_the_key_of_another_method(prefix: str) -> None:
    assert "has no setting basis, which belongs to wina, larosa" in refusal("method=teal", f"{prefix}method.basis=pca")


@pytest.mark.parametrize("preset", choices("method"))
def test_the_yaml_of_a_method_holds_its_own_keys_only(preset: str) -> None:
    written = yaml.safe_load((CONF / "method" / f"{preset}.yaml").read_text(encoding="utf-8"))
    config = METHOD_CONFIGS[METHOD_NAMES.index(written["name"])]
    assert set(written) == set(config.own_keys())
    assert written["preset"] == preset


def test_no_setting_has_a_former_name() -> None:
    known = settings()
    assert [key for key in KEYS if keys.type_of(key, known) is not None] == []
    assert [name for name in known if re.search(r"keep_weights|rank_share|transform_storage|gate_tokens", name)] == []
