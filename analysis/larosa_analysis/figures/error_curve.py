"""Figure 5: relative output error of one projection against the sparsity of its input, methods beside theory."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from larosa_analysis.figures.drawn import Drawn, conditions_of
from larosa_analysis.records.entry import Record
from larosa_analysis.style import method_styles, plain
from larosa_analysis.tables.names import short_names

COINCIDE = 0.1
"""Relative."""


def draw(record: Record) -> Figure:
    """Theory as a grey dashed line, a line with markers per method."""
    values = record["values"]
    names = short_names(values["measured"])
    levels = [100 * level for level in values["levels"]]
    figure, axes = plt.subplots(figsize=(6.0, 4.2), layout="constrained")
    axes.plot(levels, values["theory"], color="0.35", linestyle="--", label="theory (Gaussian)")
    for place, (name, (colour, mark)) in enumerate(method_styles(values["measured"]).items()):
        axes.plot(  # lines that lie on each other stay apart: rings around the first one's marks
            levels, values["measured"][name], color=colour, marker=mark, label=names[name], markersize=5 + 3 * place,
            markerfacecolor=colour if place == 0 else "none", linewidth=1.6 if place == 0 else 1.0,
        )  # fmt: skip
    axes.set(xlabel=f"sparsity of {values['site']} [%]", ylabel="relative output error")
    axes.set_ylim(bottom=0)
    plain(axes)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    return figure


def coinciding(record: Record) -> str:
    """A sentence about the methods whose errors differ by less than COINCIDE at every sparsity; empty without any."""
    measured, names = record["values"]["measured"], short_names(record["values"]["measured"])
    first, *others = measured
    same = [
        other
        for other in others
        if all(abs(b - a) <= COINCIDE * max(a, b) for a, b in zip(measured[first], measured[other], strict=True))
    ]
    if not same:
        return ""
    shown = ", ".join(names[method] for method in [first, *same])
    return f" Within {100 * COINCIDE:g} % of each other at every sparsity: {shown}."


def drawn(record: Record, name: str) -> Drawn:
    """With its caption."""
    values = record["values"]
    caption = (
        f"Relative error (Euclidean norm) of the consumers of {values['site']} in layer {values['layer']}, by its "
        f"sparsity; theory: Top-K of Gaussian activations.{coinciding(record)} {conditions_of(record)}"
    )
    return Drawn(name, "Figure 5. Output error against sparsity", caption, draw(record))
