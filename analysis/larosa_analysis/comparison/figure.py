"""The method table as a figure: increase in perplexity against the achieved weight sparsity, one panel per text."""

from __future__ import annotations

from itertools import cycle

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from larosa_analysis.comparison.rows import REFERENCE, Rows
from larosa_analysis.records.entry import Entry
from larosa_analysis.style import LINE_STYLES, method_styles


def best_by_target(rows: Rows) -> dict[str, list[Entry]]:
    """Label -> at each target the schedule with the smallest increase, mean over texts."""
    best: dict[tuple[str, float], Entry] = {}
    for entry in rows.entries:
        key = (entry.label, entry.target)
        if entry is not rows.dense and (key not in best or rows.increases.mean(entry) < rows.increases.mean(best[key])):
            best[key] = entry
    by_label: dict[str, list[Entry]] = {}
    for (label, _), entry in sorted(best.items(), key=lambda item: (item[0][0] != REFERENCE, item[0])):
        by_label.setdefault(label, []).append(entry)
    return by_label


def draw(rows: Rows) -> Figure:
    """Every method at its best schedule; markers and lines differ, so that grey print keeps them apart."""
    methods = best_by_target(rows)
    styles = method_styles(["dense", *methods])
    figure, panels = plt.subplots(
        1, len(rows.texts), figsize=(1.5 + 3.6 * len(rows.texts), 4.8), layout="constrained", squeeze=False
    )
    for axes, text in zip(panels[0], rows.texts, strict=True):
        for (label, entries), line in zip(methods.items(), cycle(LINE_STYLES), strict=False):
            colour, marker = styles[label]
            points = sorted((100 * entry.achieved[text], rows.increases.observed(entry)[text]) for entry in entries)
            axes.plot(
                *zip(*points, strict=True), color=colour, marker=marker, linestyle=line, markersize=5, label=label
            )
        axes.set(title=text, xlabel="achieved weight sparsity, %", yscale="log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("increase in perplexity over dense (log scale)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    config = rows.dense.record["config"]
    figure.suptitle(f"{config['model']['name']}, {config['model']['dtype']}: each method at its best schedule")
    return figure
