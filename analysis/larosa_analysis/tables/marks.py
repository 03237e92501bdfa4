"""The best value of a sparsity, marked only where it beats the runner-up by more than chance."""

from __future__ import annotations

from larosa_analysis.records.outcomes import SEVEN
from larosa_analysis.records.run import Run
from larosa_analysis.stats.paired import accuracies_differ, perplexities_differ
from larosa_analysis.tables import match
from larosa_analysis.tables.cells import Cell
from larosa_analysis.tables.lines import Line
from larosa_analysis.tables.measure import LOWER_IS_BETTER


def best_lines(lines: list[Line], source: str, cells: list[Cell]) -> set[int]:
    """Numbers of the lines whose cell of `source` is the best of its target, metric and quantisation, significantly so.

    Only sparse runs that achieve the target take part.
    """
    kind, _, name = source.partition(":")
    if kind not in LOWER_IS_BETTER:
        return set()
    contests: dict[tuple[float, str, str], list[tuple[float, int, Run]]] = {}
    for number, (line, cell) in enumerate(zip(lines, cells, strict=True)):
        run = line.run
        if (
            run is not None
            and cell.value is not None
            and run.entry.family != "dense"
            and match.stands(run, line.target)
        ):
            value = cell.value if LOWER_IS_BETTER[kind] else -cell.value
            place = (line.target, match.metric(run), run.entry.quantization)
            contests.setdefault(place, []).append((value, number, run))
    best = set()
    for contest in contests.values():
        (_, number, first), *others = sorted(contest, key=lambda entry: entry[:2])
        if others and _differ(kind, name, first, others[0][2]):
            best.add(number)
    return best


def _differ(kind: str, name: str, one: Run, other: Run) -> bool:
    if kind == "ppl":
        return bool(perplexities_differ(one.entry, other.entry, name))
    tasks = SEVEN if kind == "acc7" else (name,)
    return bool(accuracies_differ([one.scores[task] for task in tasks], [other.scores[task] for task in tasks]))
