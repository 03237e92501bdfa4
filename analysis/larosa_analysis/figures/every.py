"""All five figures of a bank."""

from __future__ import annotations

from collections.abc import Callable

from larosa_analysis.bank import Bank
from larosa_analysis.figures import diagram, error_curve, lengths, surface, thresholds
from larosa_analysis.figures.drawn import Drawn, inspection
from larosa_analysis.records import Record

DEFAULT_MODEL = "smollm2-135m"
"""In the commands of figures that nothing is there for."""


def build(bank: Bank) -> list[Drawn]:
    """Figures 1 to 5; of a kind with several models one figure a model, its name with the model's."""
    models = sorted({record["model"] for record in bank.inspected("thresholds")} | set(bank.models)) or [DEFAULT_MODEL]
    return [
        *_inspected(bank, "surface", 1, "Figure 1. Activations before and after rotation", surface.drawn),
        diagram.drawn(),
        *(thresholds.drawn(bank, model, _name(3, model, models)) for model in models),
        lengths.drawn(bank),
        *_inspected(bank, "error_curve", 5, "Figure 5. Output error against level", error_curve.drawn),
    ]


def _inspected(bank: Bank, kind: str, number: int, title: str, drawn: Callable[[Record, str], Drawn]) -> list[Drawn]:
    """The newest record of each model."""
    newest = {record["model"]: record for record in bank.inspected(kind)}
    if not newest:
        missing = f"no record; what makes it: `{inspection(kind, DEFAULT_MODEL)}`"
        return [Drawn(f"figure{number}", title, "", None, missing)]
    return [drawn(record, _name(number, model, list(newest))) for model, record in newest.items()]


def _name(number: int, model: str, models: list[str]) -> str:
    return f"figure{number}" if len(models) == 1 else f"figure{number}-{model}"
