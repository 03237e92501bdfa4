"""All five figures of a store."""

from __future__ import annotations

from collections.abc import Callable

from larosa_analysis.figures import diagram, error_curve, lengths, surface, thresholds
from larosa_analysis.figures.drawn import Drawn, diagnose_command
from larosa_analysis.records.entry import Record
from larosa_analysis.records.store import RecordStore

DEFAULT_MODEL = "smollm2-135m"
"""In the commands of figures that nothing is there for."""


def build(store: RecordStore) -> list[Drawn]:
    """Figures 1 to 5; of a kind with several models one figure per model, its name with the model's."""
    models = sorted({record["model"] for record in store.diagnostics_of("thresholds")} | set(store.models)) or [
        DEFAULT_MODEL
    ]
    return [
        *_diagnostics(store, "surface", 1, "Figure 1. Activations before and after rotation", surface.drawn),
        diagram.drawn(),
        *(thresholds.drawn(store, model, _name(3, model, models)) for model in models),
        lengths.drawn(store),
        *_diagnostics(store, "error_curve", 5, "Figure 5. Output error against sparsity", error_curve.drawn),
    ]


def _diagnostics(
    store: RecordStore, kind: str, number: int, title: str, drawn: Callable[[Record, str], Drawn]
) -> list[Drawn]:
    """The newest record of each model."""
    newest = {record["model"]: record for record in store.diagnostics_of(kind)}
    if not newest:
        missing = f"no record; what makes it: `{diagnose_command(kind, DEFAULT_MODEL)}`"
        return [Drawn(f"figure{number}", title, "", None, missing)]
    return [drawn(record, _name(number, model, list(newest))) for model, record in newest.items()]


def _name(number: int, model: str, models: list[str]) -> str:
    return f"figure{number}" if len(models) == 1 else f"figure{number}-{model}"
