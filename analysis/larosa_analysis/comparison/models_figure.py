"""Methods on several models as a figure: a panel per model, a line per method, a mark per target.

The increase in perplexity over magnitude Top-K's at equal weight bytes read, with its 95 % interval. What lies far to
the right is written at the edge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from larosa_analysis.comparison.models import Pooled
from larosa_analysis.comparison.ratio_figure import EDGE
from larosa_analysis.style import method_styles, plain

Cells = Mapping[float, Mapping[str, Pooled]]
"""Target -> label -> the method."""


def draw(panels: Mapping[str, Cells], names: Mapping[str, str]) -> Figure:
    """panels: title -> cells, in their order; names: label -> what it is called, in the order of the lines."""
    size = (3.4 + 2.6 * len(panels), 1.5 + 0.42 * len(names))
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    styles = method_styles(names)
    for panel, (title, cells) in zip(axes[0], panels.items(), strict=True):
        _panel(panel, cells, list(names), styles)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("increase / magnitude Top-K's", fontsize=9)
    axes[0][0].set_yticks(range(len(names)), list(names.values()), fontsize=9)
    axes[0][0].set_ylim(len(names) - 0.5, -0.5)
    targets = sorted({target for cells in panels.values() for target in cells})
    marks = [f"{100 * (1 - t):.0f} % ({'filled' if place else 'hollow'} mark)" for place, t in enumerate(targets)]
    figure.supxlabel(f"weight bytes read, overhead included, of dense: {', '.join(marks)}", fontsize=9)
    return figure


def _panel(axes: Axes, cells: Cells, labels: Sequence[str], styles: Mapping[str, tuple[str, str]]) -> None:
    targets = sorted(cells)
    for step, target in enumerate(targets):
        shift = 0.0 if len(targets) == 1 else 0.4 * (step / (len(targets) - 1) - 0.5)
        for place, label in enumerate(labels):
            if label in cells[target]:
                _mark(axes, cells[target][label], place + shift, styles[label], filled=step > 0)
    axes.axvline(1.0, color="#666666", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(0.5, 1.05 * EDGE)
    axes.set_xticks([0.5, 0.7, 1.0, 1.4, 2.0, 3.0], ["0.5", "0.7", "1", "1.4", "2", "3"])
    axes.minorticks_off()
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    plain(axes)


def _mark(axes: Axes, method: Pooled, place: float, style: tuple[str, str], filled: bool) -> None:
    (colour, mark), ratio = style, method.mean
    if ratio.value > EDGE:
        axes.text(EDGE, place, f"{ratio.value:.3g}", color=colour, fontsize=7, ha="right", va="center")
        return
    if ratio.low is not None and ratio.high is not None:
        axes.hlines(place, ratio.low, min(ratio.high, EDGE), color=colour, linewidth=1.2, zorder=1)
    fill = colour if filled else "white"
    axes.plot([ratio.value], [place], marker=mark, color=colour, markerfacecolor=fill, markersize=5.5)
