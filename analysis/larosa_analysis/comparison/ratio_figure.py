"""The main result as a figure: the increase in perplexity over magnitude Top-K's, a line per method, a mark per target.

Left at equal weight sparsity, right at equal bytes read; left of the line at 1 a method beats plain Top-K. What lies
far to the right is written at the edge.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from larosa_analysis.comparison.markdown import percent
from larosa_analysis.comparison.rows import Metric, Row, Rows
from larosa_analysis.style import method_styles, plain

EDGE = 4.0
"""The largest ratio that is drawn."""
_METRICS: tuple[Metric, ...] = ("weight sparsity", "bytes read")


def draw(rows: Rows, places: list[tuple[float, Metric]], labels: list[str], names: dict[str, str]) -> Figure:
    """`places` are the columns of the main table, `labels` its rows, `names` what they are called."""
    metrics = [metric for metric in _METRICS if any(place[1] == metric for place in places)]
    levels = len({target for target, _ in places})
    size = (3.2 + 3.6 * len(metrics), 1.6 + (0.22 + 0.09 * levels) * len(labels))
    figure, panels = plt.subplots(1, len(metrics), figsize=size, sharey=True, squeeze=False, layout="constrained")
    styles, free = method_styles(labels), {row.entry.label for row in rows.rows if not row.entry.overhead}
    for axes, metric in zip(panels[0], metrics, strict=True):
        targets = [target for target, place_metric in places if place_metric == metric]
        for step, target in enumerate(targets):
            by_label = {row.entry.label: row for row in rows.standing(target, metric)}
            if metric == "bytes read":  # without overhead both are one
                level = {row.entry.label: row for row in rows.standing(target, "weight sparsity")}
                by_label |= {label: row for label, row in level.items() if label in free}
            for place, label in enumerate(labels):
                if label in by_label:
                    _mark(
                        axes,
                        by_label[label],
                        place + _shift(step, len(targets)),
                        styles[label],
                        _share(step, len(targets)),
                    )
        _dress(axes, metric)
    panels[0][0].set_yticks(range(len(labels)), [names[label] for label in labels])
    panels[0][0].set_ylim(len(labels) - 0.5, -0.5)
    figure.legend(handles=_legend(places), loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return figure


def _shift(step: int, steps: int) -> float:
    """Levels of one method lie above each other."""
    return 0.0 if steps == 1 else 0.44 * (step / (steps - 1) - 0.5)


def _share(step: int, steps: int) -> float:
    """How far a level's mark is filled: the lowest not at all, the highest wholly."""
    return 1.0 if steps == 1 else step / (steps - 1)


def _filled(colour: str, share: float) -> tuple[float, float, float]:
    red, green, blue = (1 - share * (1 - part) for part in to_rgb(colour))
    return red, green, blue


def _mark(axes: Axes, row: Row, place: float, style: tuple[str, str], share: float) -> None:
    (colour, mark), estimate = style, row.compared.mean
    fill = _filled(colour, share)
    if estimate.value > EDGE:
        axes.text(EDGE, place, f"{estimate.value:.3g}", color=colour, fontsize=7, ha="right", va="center")
        return
    if estimate.low is not None and estimate.high is not None:
        axes.hlines(place, estimate.low, min(estimate.high, EDGE), color=colour, linewidth=1.2, zorder=1)
    axes.plot([estimate.value], [place], marker=mark, color=colour, markerfacecolor=fill, markersize=5.5)


def _dress(axes: Axes, metric: Metric) -> None:
    axes.axvline(1.0, color="#666666", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(min(0.45, axes.get_xlim()[0]), 1.05 * EDGE)
    axes.set_xticks([0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 4.0], ["0.5", "0.7", "1", "1.4", "2", "3", "4"])
    axes.minorticks_off()
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(f"equal {metric}", fontsize=10)
    axes.set_xlabel("increase over dense / magnitude Top-K's", fontsize=9)
    plain(axes)


def _legend(places: list[tuple[float, Metric]]) -> list[Line2D]:
    """From hollow to full with rising level; the levels of a method lie below each other in that order."""
    targets = sorted({target for target, _ in places})
    fills = [_filled("#4D4D4D", _share(step, len(targets))) for step in range(len(targets))]
    return [
        Line2D([], [], color="0.3", marker="o", linestyle="none", markerfacecolor=fill, label=f"{percent(target, 0)} %")
        for target, fill in zip(targets, fills, strict=True)
    ]
