"""Figure 3: calibrated thresholds by layer, those that tokens needed, achieved sparsity by text, speed-up by length."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from larosa.records.method_settings import method_of
from larosa_analysis.comparison.achieved import Achieved, draw_on, of
from larosa_analysis.figures import lengths
from larosa_analysis.figures.drawn import Drawn, conditions_of, diagnose_command
from larosa_analysis.records.conditions import described
from larosa_analysis.records.entry import Record
from larosa_analysis.records.run import Run
from larosa_analysis.records.store import RecordStore
from larosa_analysis.speed.rows import SpeedRow, machine
from larosa_analysis.style import SITE_STYLE, level_colours, plain
from larosa_analysis.tables import match
from larosa_analysis.tables.commands import filling
from larosa_analysis.tables.group import choose
from larosa_analysis.tables.names import short_names

SPARSITY = 0.5


def draw(record: Record | None, cells: list[Achieved], timed: dict[str, list[SpeedRow]]) -> Figure:
    """Row one: (a) a panel a site. Row two: (b), (c), (d). What has no record says so in its panel."""
    figure = plt.figure(figsize=(13, 7.6), layout="constrained")
    grid = figure.add_gridspec(2, 12)
    upper = [figure.add_subplot(grid[0, 3 * place : 3 * place + 3]) for place in range(4)]
    lower = [figure.add_subplot(grid[1, 4 * place : 4 * place + 4]) for place in range(3)]
    for place, (axes, site) in enumerate(zip(upper, SITE_STYLE, strict=True)):
        _calibrated(axes, record, site, first=place == 0)
    handles, labels = upper[-1].get_legend_handles_labels()
    if handles:
        upper[-1].legend(
            handles[::-1], labels[::-1], title="sparsity", fontsize=8, frameon=False, bbox_to_anchor=(1.01, 1),
            loc="upper left",
        )  # fmt: skip
    _needed(lower[0], record)
    _achieved(lower[1], cells)
    _lengths(lower[2], timed)
    for axes, letter in zip([upper[0], *lower], "abcd", strict=True):
        title = axes.get_title()
        axes.set_title("")
        axes.set_title(f"({letter}) {title}", fontsize=11, loc="left")
    return figure


def _absent(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.text(0.5, 0.5, "no record", ha="center", va="center", color="0.4", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[])


def _calibrated(axes: Axes, record: Record | None, site: str, first: bool) -> None:
    title = f"thresholds of {site}" if first else site
    if record is None or site not in record["values"]["calibrated"]:
        _absent(axes, title)
        return
    levels, thresholds = record["values"]["levels"], record["values"]["calibrated"][site]
    for level, colour, line in zip(levels, level_colours(levels), thresholds, strict=True):
        layers = [layer for layer, threshold in enumerate(line) if threshold is not None]
        axes.plot(layers, [line[layer] for layer in layers], color=colour, linewidth=1.4, label=f"{100 * level:g} %")
    axes.set(xlabel="layer", title=title)
    axes.set_ylim(bottom=0)
    plain(axes)
    if first:
        axes.set_ylabel("calibrated threshold (magnitude)")


def _needed(axes: Axes, record: Record | None) -> None:
    if record is None:
        _absent(axes, "needed threshold by token")
        return
    needed = record["values"]["needed"]
    title = f"{needed['site']}, layer {needed['layer']}, {100 * needed['level']:g} %"
    axes.plot(needed["per_token"], ".", color="#0072B2", markersize=3, label="needed by the token")
    axes.axhline(needed["calibrated"], color="#D55E00", linestyle="--", label="calibrated")
    axes.set(xlabel="token", ylabel="threshold (magnitude)", title=title)
    axes.set_ylim(0, 1.25 * max([*needed["per_token"], needed["calibrated"]]))
    plain(axes)
    axes.legend(fontsize=8, frameon=False, loc="upper right", ncols=2)


def _achieved(axes: Axes, cells: list[Achieved]) -> None:
    if not cells:
        _absent(axes, "achieved sparsity by text")
        return
    draw_on(axes, cells, SPARSITY)
    axes.set_title(f"achieved, target {100 * SPARSITY:g} %")
    axes.set_ylim(top=min(100.0, 115 * max(cell.most for cell in cells)))  # room for the legend
    plain(axes)
    axes.legend(fontsize=8, frameon=False, loc="upper right", ncols=2)


def _lengths(axes: Axes, timed: dict[str, list[SpeedRow]]) -> None:
    if not timed:
        _absent(axes, "speed-up with thresholds by output length")
        return
    lengths.draw_on(axes, timed, by_sparsity=True)
    axes.set_title("speed-up with thresholds")
    most = max(cell.speedup for cells in timed.values() for cell in cells)
    axes.set_ylim(0.9, 1 + 1.5 * (most - 1))  # room for the legend
    axes.legend(fontsize=7, frameon=False, loc="upper left", ncols=2)


def at_target(runs: list[Run]) -> list[Run]:
    """Thresholds and magnitude Top-K at the target SPARSITY, each at the schedule that a printed row would take."""
    aimed = [run for run in runs if abs(run.entry.target - SPARSITY) < 1e-9]
    comparable = [r for r in aimed if method_of(r.config)["selector"] == "threshold" or r.preset == "magnitude"]
    by_label: dict[str, list[Run]] = {}
    for run in comparable:
        by_label.setdefault(run.entry.label, []).append(run)
    chosen = [match.at(group, SPARSITY, printed=True) for group in by_label.values()]
    return [run for run in chosen if run is not None]


def _by_thresholds(cell: Achieved) -> str:
    """Said of a method that is Top-K by default and ran with thresholds."""
    return ", thresholds" if cell.selector == "threshold" and cell.method.startswith("larosa") else ""


def drawn(store: RecordStore, model: str, name: str) -> Drawn:
    """Figure 3 of one model, with what it lacks."""
    record = next((r for r in reversed(store.diagnostics_of("thresholds")) if r["model"] == model), None)
    runs = at_target(choose(store.of(model), texts=True, tasks=()).runs)
    cells = of(run.entry.record for run in runs)
    names = short_names(cell.method for cell in cells)
    cells = [replace(cell, method=names[cell.method] + _by_thresholds(cell)) for cell in cells]
    timed = lengths.timed(store, "thresholds")
    absent = [("a and b", f"`{diagnose_command('thresholds', model)}`")] if record is None else []
    absent += [] if cells else [("c", filling("figure3", model))]
    absent += [] if timed else [("d", filling("figure3", model))]
    missing = "; ".join(f"{panel}: {words}" for panel, words in absent)
    shown = [f"(a), (b): {conditions_of(record)}"] if record is not None else []
    shown += [f"(c): {described(runs)}"] if runs else []
    timings = list({id(cell.record): cell.record for line in timed.values() for cell in line}.values())
    shown += [f"(d): {machine(timings)}."] if timings else []
    caption = (
        "(a) Calibrated thresholds by layer, a line per sparsity, of each site. (b) The threshold each token would "
        "have needed for the sparsity, beside the calibrated one. (c) Achieved weight sparsity by text: mean, one "
        "standard deviation and extremes over tokens. (d) Speed-up with thresholds by new tokens. " + " ".join(shown)
    )
    title = "Figure 3. What calibrated thresholds do"
    return Drawn(name, title, caption, draw(record, cells, timed) if record or cells or timed else None, missing)
