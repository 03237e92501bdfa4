"""The figures of one run: quality, output error beside theory, thresholds by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from larosa_analysis.style import SITE_STYLE, method_styles

Record = dict[str, Any]


def draw(records: dict[str, Record], folder: Path) -> list[Path]:
    """Draw what the records allow into `folder` as PNG; the last record is the run's method. Returns the paths."""
    sparse = {name: record for name, record in records.items() if record["metrics"].get("errors")}
    figures = {"quality": quality(records)}
    if sparse:
        figures["output_error"] = output_error(sparse)
        figures["thresholds"] = thresholds(*list(sparse.items())[-1])
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{name}.png")
        figure.savefig(paths[-1], dpi=150)
        plt.close(figure)
    return paths


def _title(record: Record) -> str:
    config = record["config"]
    level = record["metrics"]["accounting"]["weight_sparsity"]
    return f"{config['model']['name']}, {100 * level:.1f} % weight sparsity"


def quality(records: dict[str, Record]) -> Figure:
    """Perplexity by text and accuracy by task, a bar per method, with standard errors."""
    last = list(records.values())[-1]["metrics"]
    texts, tasks = list(last["perplexity"]), list(last["zero_shot"])
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(4 + 1.6 * (len(texts) + len(tasks)), 4), layout="constrained",
        width_ratios=[max(len(texts), 1), max(len(tasks), 1)],
    )  # fmt: skip
    _bars(left, records, "perplexity", texts, "perplexity", 1.0)
    left.set_ylabel("perplexity (lower is better)")
    _bars(right, records, "zero_shot", tasks, "value", 100.0)
    right.set_ylabel("accuracy, % (higher is better)")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(_title(list(records.values())[-1]))
    return figure


def _bars(axes: Axes, records: dict[str, Record], group: str, names: list[str], key: str, scale: float) -> None:
    width, styles = 0.8 / max(len(records), 1), method_styles(records)
    for i, (method, record) in enumerate(records.items()):
        scores = [record["metrics"][group].get(name) for name in names]
        place = [j + (i - (len(records) - 1) / 2) * width for j in range(len(names))]
        height = [scale * f[key] if f else 0.0 for f in scores]
        error = [scale * (f["standard_error"] or 0.0) if f else 0.0 for f in scores]
        axes.bar(place, height, width * 0.92, yerr=error, label=method, color=styles[method][0], capsize=2)
    axes.set_xticks(range(len(names)), names)
    axes.spines[["top", "right"]].set_visible(False)


def output_error(records: dict[str, Record]) -> Figure:
    """Relative output error by layer, one panel per site, beside Theorem A.1 at the site's sparsity."""
    styles = method_styles(["dense", *records])
    figure, panels = plt.subplots(1, 5, figsize=(15, 3.6), sharey=True, layout="constrained")
    for axes, (site, (_colour, _style, meaning)) in zip(panels, SITE_STYLE.items(), strict=False):
        for method, record in records.items():
            errors = record["metrics"]["errors"]
            colour, marker = styles[method]
            axes.plot(errors["site_error"][site], color=colour, marker=marker, markersize=3, label=method)
        axes.plot(errors["site_error_theory"][site], color="0.35", linestyle="--", label="theory (A.1)")
        axes.set_title(f"{site}: {meaning}", fontsize=9)
    for method, record in records.items():
        colour, marker = styles[method]
        panels[4].plot(record["metrics"]["errors"]["layer_error"], color=colour, marker=marker, markersize=3)
    panels[4].set_title("whole layer's update", fontsize=9)
    for axes in panels:
        axes.set_xlabel("layer")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("relative output error")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(_title(list(records.values())[-1]))
    return figure


def thresholds(name: str, record: Record) -> Figure:
    """The k-th magnitude by layer: median, and the band that holds 90 % of the tokens."""
    errors = record["metrics"]["errors"]
    low, middle, high = (errors["threshold_quantiles"].index(q) for q in (0.05, 0.5, 0.95))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    handles = []
    for site, (colour, style, meaning) in SITE_STYLE.items():
        held = [(i, q) for i, q in enumerate(errors["thresholds"][site]) if q is not None]
        if not held:
            continue
        layers = [i for i, _ in held]
        axes.fill_between(layers, [q[low] for _, q in held], [q[high] for _, q in held], color=colour, alpha=0.2)
        axes.plot(layers, [q[middle] for _, q in held], color=colour, linestyle=style)
        handles.append(Line2D([], [], color=colour, linestyle=style, label=f"{site}: {meaning}"))
    axes.set(xlabel="layer", ylabel="k-th magnitude (log scale)", yscale="log")
    axes.set_title(f"{name}: {_title(record)}\nmedian and 5-95 % of tokens", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure
