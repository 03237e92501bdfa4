"""All nineteen tables of a bank, in their order."""

from __future__ import annotations

from dataclasses import replace

from larosa_analysis.bank import Bank
from larosa_analysis.tables import coefficients, counted, covariance, from_runs, timed
from larosa_analysis.tables.cells import Table
from larosa_analysis.tables.flops import Shape
from larosa_analysis.tables.measure import Context
from larosa_analysis.tables.spec import SPECS

_COVARIANCE = 8


def build(bank: Bank, shapes: dict[str, Shape]) -> list[Table]:
    """Table 1 to Table 19; shapes of the models by name."""
    context = Context(shapes, bank.inspected("covariance"))
    tables = [from_runs.build(spec, bank, context) for spec in SPECS]
    tables += [timed.build(bank), coefficients.build(bank, shapes), counted.build(shapes, bank.models)]
    return sorted((_with_covariances(table, context) for table in tables), key=lambda table: table.number)


def _with_covariances(table: Table, context: Context) -> Table:
    if table.number != _COVARIANCE:
        return table
    return replace(table, blocks=[*table.blocks, *(covariance.block(record) for record in context.covariances)])
