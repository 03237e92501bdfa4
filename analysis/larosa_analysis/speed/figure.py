"""Speed-up against target sparsity, measured and as the bytes read would allow."""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from larosa_analysis.records.entry import Record
from larosa_analysis.speed.rows import SpeedRow, speed_rows
from larosa_analysis.style import LINE_STYLES, SPARE


def draw(records: list[Record]) -> Figure:
    """Measured with markers, what the bytes allow as a thin line of the same colour."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    rows = speed_rows(records)
    spare = [style for style in SPARE if style[0] != "#F0E442"]  # too pale for a thin line
    styles = itertools.cycle([("#0072B2", "D"), ("#E69F00", "o"), ("#009E73", "^"), *spare])
    several_lengths = len({(row.context, row.new_tokens) for row in rows}) > 1
    for place, key in enumerate(dict.fromkeys(row.line for row in rows)):
        line = [row for row in rows if row.line == key]
        (colour, mark), targets = next(styles), [100 * row.sparsity for row in line]
        dashes, name = LINE_STYLES[place % 3], _name(line[0], several_lengths)  # the dotted one: what the bytes allow
        axes.plot(targets, [row.speedup for row in line], dashes, color=colour, marker=mark, label=name)
        axes.plot(targets, [row.ideal for row in line], ":", color=colour, linewidth=0.8)
    axes.axhline(1.0, color="#666666", linewidth=0.8)
    axes.set_xlabel("target sparsity of every site [%]")
    axes.set_ylabel("speed-up over the fastest dense decoder")
    axes.set_title("Decode step, batch 1; dotted: what the bytes read would allow", fontsize=10)
    axes.legend(fontsize=8, loc="upper left")
    return figure


def _name(row: SpeedRow, lengths: bool) -> str:
    return f"{row.label}, {row.context} + {row.new_tokens}" if lengths else row.label
