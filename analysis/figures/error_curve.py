"""Figure 5: relative output error of one projection against the level of its input, methods beside theory."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from analysis.figures.drawn import Drawn, inspected
from analysis.records import Record
from analysis.style import method_styles, plain
from analysis.tables.names import short_names


def draw(record: Record) -> Figure:
    """Theory as a grey dashed line, a line with markers a method."""
    values = record["values"]
    names = short_names(values["measured"])
    levels = [100 * level for level in values["levels"]]
    figure, axes = plt.subplots(figsize=(6.0, 4.2), layout="constrained")
    axes.plot(levels, values["theory"], color="0.35", linestyle="--", label="theory (Gaussian)")
    for name, (colour, mark) in method_styles(values["measured"]).items():
        axes.plot(levels, values["measured"][name], color=colour, marker=mark, markersize=5, label=names[name])
    axes.set(xlabel=f"level of {values['site']}, entries dropped [%]", ylabel="relative output error")
    axes.set_ylim(bottom=0)
    plain(axes)
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    return figure


def drawn(record: Record, name: str) -> Drawn:
    """With its caption."""
    values = record["values"]
    caption = (
        f"Relative error (Euclidean norm) of what reads {values['site']} in layer {values['layer']}, by the share of "
        f"entries dropped; theory: Top-K of Gaussian activations. {inspected(record)}"
    )
    return Drawn(name, "Figure 5. Output error against level", caption, draw(record))
