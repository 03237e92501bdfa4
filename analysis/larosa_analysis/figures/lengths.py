"""Figures 3d and 4: speed-up against output length, from timings at several lengths."""

from __future__ import annotations

from itertools import cycle

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from larosa_analysis.figures.drawn import Drawn
from larosa_analysis.records.store import RecordStore
from larosa_analysis.speed.rows import OVERHEADS, SELECTORS, SpeedRow, machine, speed_rows
from larosa_analysis.style import LINE_STYLES, SPARE, level_colours, method_styles, plain
from larosa_analysis.tables.commands import filling

SPARSITY = 0.5
Colour = str | tuple[float, float, float, float]
_METHODS = {("top-k", "none"): "magnitude", ("thresholds", "none"): "teal", ("top-k", "adapter"): "larosa"}
"""Selector and overhead of the benchmark -> the method whose step this is, for its colour; timed runs name theirs."""
_ADDED = set(OVERHEADS) - {"none"}
"""Overhead of the benchmark that costs time."""


def timed(store: RecordStore, selector: str | None = None) -> dict[str, list[SpeedRow]]:
    """Label -> rows by output length, of plans that one process timed at two lengths or more.

    With `selector` every target of that selector without overhead; else every selector at SPARSITY. Of processes of one
    label that of most lengths is taken, and of those the newest: a line is one process's.
    """
    lines: dict[tuple[int, str], list[SpeedRow]] = {}
    for cell in speed_rows(store.timings):
        chosen = selector == cell.selector and cell.record["overhead"] not in _ADDED
        if chosen or (selector is None and abs(cell.sparsity - SPARSITY) < 1e-9):
            lines.setdefault((id(cell.record), _label(cell, selector is None)), []).append(cell)
    several = [cells for cells in lines.values() if len({cell.new_tokens for cell in cells}) > 1]
    machines = len({cells[0].record["device"] for cells in several}) > 1
    by_label: dict[str, list[SpeedRow]] = {}
    for cells in several:
        label = _label(cells[0], selector is None) + (f", {cells[0].record['device']}" if machines else "")
        by_label[label] = max(by_label.get(label, []), cells, key=_standing)
    return {label: sorted(cells, key=lambda cell: cell.new_tokens) for label, cells in by_label.items()}


def _standing(cells: list[SpeedRow]) -> tuple[int, str]:
    """Lengths of a process, and when it ran."""
    return len({cell.new_tokens for cell in cells}), cells[0].record["date"] if cells else ""


def _label(cell: SpeedRow, by_selector: bool) -> str:
    model, context = cell.record["model"], f"context {cell.context}"
    if not by_selector:
        return f"{100 * cell.sparsity:g} %, {model}, {context}"
    overhead = OVERHEADS.get(cell.record["overhead"], cell.record["overhead"])
    return f"{model}, {overhead}, {SELECTORS[cell.selector]}, {context}"


def draw_on(axes: Axes, lines: dict[str, list[SpeedRow]], by_sparsity: bool = False) -> None:
    """A line per plan, coloured by method or by target."""
    styles = _sparsity_styles(lines) if by_sparsity else _styles(lines)
    for (label, cells), dashes in zip(lines.items(), cycle(LINE_STYLES), strict=False):
        colour, mark = styles[label]
        lengths = [cell.new_tokens for cell in cells]
        axes.plot(lengths, [c.speedup for c in cells], dashes, color=colour, marker=mark, markersize=5, label=label)
    axes.axhline(1.0, color="#666666", linewidth=0.8)
    axes.set(xlabel="new tokens", ylabel="speed-up over dense", xscale="log")
    ticks = sorted({cell.new_tokens for cells in lines.values() for cell in cells})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    plain(axes)


def _styles(lines: dict[str, list[SpeedRow]]) -> dict[str, tuple[Colour, str]]:
    """The colour of a method goes to its first line, further models take spare ones."""
    styles: dict[str, tuple[Colour, str]] = {}
    taken: set[str] = set()
    spare = cycle([style for style in SPARE if style[0] != "#F0E442"])  # too pale for a line
    for label, cells in lines.items():
        overhead = str(cells[0].record["overhead"])
        method = _METHODS.get((cells[0].selector, overhead), overhead.partition(", ")[0])
        styles[label] = method_styles([method])[method] if method not in taken else next(spare)
        taken.add(method)
    return styles


def _sparsity_styles(lines: dict[str, list[SpeedRow]]) -> dict[str, tuple[Colour, str]]:
    levels = sorted({cells[0].sparsity for cells in lines.values()})
    colours = dict(zip(levels, level_colours(levels), strict=True))
    return {label: (colours[cells[0].sparsity], "^") for label, cells in lines.items()}


def draw(lines: dict[str, list[SpeedRow]]) -> Figure:
    """Figure 4."""
    figure, axes = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    draw_on(axes, lines)
    figure.legend(fontsize=8, loc="outside lower center", ncols=1, frameon=False)
    return figure


def drawn(store: RecordStore) -> Drawn:
    """Figure 4, or what it lacks."""
    title, lines = f"Figure 4. Speed-up at {100 * SPARSITY:g} % against output length", timed(store)
    if not lines:
        missing = f"no timing has two output lengths at 50 %; what makes them: {filling('figure4', 'llama2-7b')}"
        return Drawn("figure4", title, "", None, missing)
    records = list({id(cell.record): cell.record for cells in lines.values() for cell in cells}.values())
    caption = (
        f"Speed-up over the fastest dense decoder of the same process, {100 * SPARSITY:g} % target sparsity, by "
        f"the number of new tokens. {machine(records)}."
    )
    return Drawn("figure4", title, caption, draw(lines))
