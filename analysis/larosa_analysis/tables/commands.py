"""The command that fills a model's cells, as the header of the table's sweep states it.

Headers hold the commands of the paper's models and those of smollm2-135m, with what its texts and size need. Any other
model is measured as the paper's are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import yaml

from larosa.commands import typed
from larosa.records.packaged import packaged
from larosa_analysis import paper

SWEEPS = packaged("sweeps")
_SAME_RUNS = {f"table{number}": "table01" for number in range(12, 19)}
"""Tables 12 to 18 are Table 1's runs of one model each."""
_START = "python run.py"
_ONE_GPU = ("table03", "figure4")
"""Sweeps of the decoder, which runs on one GPU: the paper's larger models are not theirs."""


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file says of itself."""

    commands: tuple[str, ...]
    """Of its header, beginning with `python run.py`, as in a checkout."""
    models: tuple[str, ...]
    """Measured where none is named."""


def command(name: str, model: str) -> str | None:
    """What fills the cells of a table or figure (`table02`) for a model; None where no sweep can.

    Records are then made short and the tables built again.
    """
    name = _SAME_RUNS.get(name, name)
    sweep = read(name)
    if sweep is None or (name in _ONE_GPU and model in paper.models() and model not in sweep.models):
        return None
    of_model = re.compile(rf"\b(?:conditions|model)={re.escape(model)}(?!\S)")
    stated = [line for line in sweep.commands if of_model.search(line) and "model.path=" not in line]
    chosen = stated[0] if stated else f"{_START} --config-dir sweeps --config-name {name} -m model={model}"
    return typed("run") + chosen.removeprefix(_START)


def filling(name: str, model: str) -> str:
    """The command in words, as code."""
    return in_words(command(name, model))


def in_words(command_line: str | None) -> str:
    """A command as code; None says that there is no sweep."""
    return "no sweep" if command_line is None else f"`{command_line}`"


@lru_cache
def read(name: str) -> Sweep | None:
    """A sweep's file; None if there is none, as for a table that needs what larosa does not do."""
    path = SWEEPS / f"{name}.yaml"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    commands = re.findall(rf"^# +({re.escape(_START)} .+)$", text, flags=re.MULTILINE)
    params = yaml.safe_load(text).get("hydra", {}).get("sweeper", {}).get("params", {})
    return Sweep(tuple(commands), tuple(str(params.get("model", "")).split(",")))
