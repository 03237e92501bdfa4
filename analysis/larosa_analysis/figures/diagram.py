"""Figure 2, a drawing: one layer with the rotation absorbed into its weights, and the adapter to the next basis.

Notation: x W with row vectors; g is a norm's weight, folded into its consumers.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from larosa_analysis.figures.drawn import Drawn

_FILL = {"weight": "#D6E6F2", "drop": "#FBE3B6", "plain": "#EDEDED", "adapter": "#F3D3E3"}
_EDGE = {"weight": "#0072B2", "drop": "#B37400", "plain": "#555555", "adapter": "#A0527D"}
_STREAM, _BRANCH = 1.0, 3.0
"""Heights of the residual stream and of the branches."""
_JOINS = (12.1, 22.8)
"""Where the branches are added."""

_BOXES: tuple[tuple[float, float, float, str, str], ...] = (
    (0.9, _STREAM, 1.6, "embedding\n$E\\,Q_1$", "weight"),
    (3.3, _BRANCH, 1.3, "norm\nwithout g", "plain"),
    (4.8, _BRANCH, 1.1, "Top-K\nh1", "drop"),
    (6.4, _BRANCH, 1.5, "q, k, v\n$Q_l^\\top\\! g\\, W$", "weight"),
    (8.1, _BRANCH, 1.4, "attention", "plain"),
    (9.6, _BRANCH, 1.1, "Top-K\nh2", "drop"),
    (11.0, _BRANCH, 1.2, "o\n$W\\,Q_l$", "weight"),
    (13.7, _BRANCH, 1.3, "norm\nwithout g", "plain"),
    (15.2, _BRANCH, 1.1, "Top-K\nh3", "drop"),
    (16.8, _BRANCH, 1.5, "gate, up\n$Q_l^\\top\\! g\\, W$", "weight"),
    (18.6, _BRANCH, 1.6, "SiLU(gate)\n$\\times$ up", "plain"),
    (20.2, _BRANCH, 1.1, "Top-K\nh4", "drop"),
    (21.6, _BRANCH, 1.2, "down\n$W\\,Q_l$", "weight"),
    (24.9, _STREAM, 2.2, "residual adapter\n$Q_l^\\top Q_{l+1}$", "adapter"),
    (28.2, _STREAM, 1.7, "norm, head\n$Q_L^\\top\\! g\\, W$", "weight"),
)
"""Centre, height, width, text, kind."""


def draw() -> Figure:
    """The forward pass from left to right, the residual stream below, its branches above."""
    figure, axes = plt.subplots(figsize=(14.5, 3.3), layout="constrained")
    axes.set(xlim=(-0.2, 29.4), ylim=(0.0, 4.1))
    axes.set_axis_off()
    _wires(axes)
    for centre, height, width, text, kind in _BOXES:
        box = FancyBboxPatch(
            (centre - width / 2, height - 0.45), width, 0.9, boxstyle="round,pad=0.02,rounding_size=0.12",
            facecolor=_FILL[kind], edgecolor=_EDGE[kind], linewidth=1.2, zorder=3,
        )  # fmt: skip
        axes.add_patch(box)
        axes.text(centre, height, text, ha="center", va="center", fontsize=8.5, zorder=4)
    for centre in _JOINS:
        axes.text(centre, _STREAM, "+", ha="center", va="center", fontsize=13, zorder=4,
                  bbox={"boxstyle": "circle,pad=0.15", "facecolor": "white", "edgecolor": "#555555"})  # fmt: skip
    axes.text(7.2, 3.85, "attention of layer $l$", ha="center", fontsize=9, color="0.3")
    axes.text(17.6, 3.85, "MLP of layer $l$", ha="center", fontsize=9, color="0.3")
    axes.text(7.1, 0.62, "residual stream in basis $Q_l$", ha="center", fontsize=9, color="0.3")
    axes.text(26.65, 1.15, "next\nlayers", ha="center", fontsize=8, color="0.3")
    return figure


def _wires(axes: Axes) -> None:
    """The stream, and into and out of both branches."""
    line = {"arrowstyle": "-|>", "color": "#333333", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    first, second = _JOINS
    for start, end in ((1.7, first - 0.3), (first + 0.3, second - 0.3), (second + 0.3, 23.8), (26.0, 27.35)):
        axes.annotate("", (end, _STREAM), (start, _STREAM), arrowprops=line)
    for out, join in zip((2.3, 12.7), _JOINS, strict=True):
        axes.plot([out, out], [_STREAM, _BRANCH], color="#333333", linewidth=1.2, zorder=1)
        axes.plot([out, join], [_BRANCH, _BRANCH], color="#333333", linewidth=1.2, zorder=1)
        axes.annotate("", (join, _STREAM + 0.33), (join, _BRANCH), arrowprops=line)


def drawn() -> Drawn:
    """With its caption."""
    caption = (
        "Forward pass of LaRoSA with absorbed rotations. Norm weights g and the basis of the layer are part of the "
        "stored weights; Top-K drops entries of the four inputs, of which h2 and h4 are not rotated. The run-time "
        "overhead is one D x D product where the basis changes. A drawing; no record is in it."
    )
    return Drawn("figure2", "Figure 2. Where rotations go", caption, draw())
