"""docs/configuration.md is what the schema says, and names every setting with a meaning."""

from __future__ import annotations

import re

from conftest import ROOT
from larosa.config import keys, reference
from larosa.config.method import METHOD_CONFIGS
from larosa.config.run import RunConfig

PAGE = ROOT / "docs" / "configuration.md"


def rows() -> list[reference.Row]:
    return [row for section in reference.sections() for part in section if isinstance(part, list) for row in part]


def test_the_page_is_what_the_schema_says() -> None:
    remedy = "python -m larosa.config.reference > docs/configuration.md"
    assert PAGE.read_text(encoding="utf-8") == reference.page(), remedy


def test_every_setting_has_a_row_with_a_meaning() -> None:
    assert [row.key for row in rows() if not row.meaning] == []
    named = {row.key.strip("`").replace("NAME", keys.ANY) for row in rows()}
    sections = {key.rpartition(".")[0] for key in keys.names(RunConfig)}
    settings = {
        key
        for key in keys.names(RunConfig)
        if key not in sections and not re.match("baseline|schedule.table|calibration.text.parts.|method", key)
    }
    assert settings - named == {"texts"}
    methods = {f"method.{key}" for config in METHOD_CONFIGS for key in config.own_keys()}
    assert methods - named == {"method.name", "method.preset"}


def test_defaults_and_ranges_are_those_of_conf_and_schema() -> None:
    shown = {row.key.strip("`"): row for row in rows()}
    assert (shown["sparsity"].type, shown["sparsity"].default) == ("number (≥ 0, < 1)", "`0.4`")
    assert shown["schedule.metric"].type == "`weight_bytes`, `nominal`"
    assert shown["calibration.text.max_documents"].type == "integer or `null` (≥ 1)"
    assert shown["model.shape.hidden_size"].default == "`576`"
    assert shown["method.tuning.coefficients.h2"].type == "number or `null` (≥ 0)"
