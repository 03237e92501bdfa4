"""All nineteen tables of a store, in their order."""

from __future__ import annotations

from dataclasses import replace

from larosa_analysis.records.store import RecordStore
from larosa_analysis.tables import coefficients, counted, covariance, from_runs, timed
from larosa_analysis.tables.cells import Table
from larosa_analysis.tables.flops import Shape
from larosa_analysis.tables.measure import Context
from larosa_analysis.tables.spec import SPECS

_COVARIANCE = 8


def build(store: RecordStore, shapes: dict[str, Shape]) -> list[Table]:
    """Table 1 to Table 19; shapes of the models by name."""
    context = Context(shapes, store.diagnostics_of("covariance"))
    tables = [from_runs.build(spec, store, context) for spec in SPECS]
    tables += [timed.build(store), coefficients.build(store, shapes), counted.build(shapes, store.models)]
    return sorted((_with_covariances(table, context) for table in tables), key=lambda table: table.number)


def _with_covariances(table: Table, context: Context) -> Table:
    if table.number != _COVARIANCE:
        return table
    return replace(table, blocks=[*table.blocks, *(covariance.block(record) for record in context.covariances)])
