"""Figure 1: magnitudes of a block's input over tokens and channels, as they are and in other bases."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from larosa_analysis.figures.drawn import Drawn, conditions_of
from larosa_analysis.records.entry import Record
from larosa_analysis.tables.names import short_names


def draw(record: Record) -> Figure:
    """One surface before, one for each basis after, on one scale."""
    values = record["values"]
    after, names = values["after"], short_names(values["after"])
    panels = {"model's own basis": values["before"]} | {names[label]: surface for label, surface in after.items()}
    heights = {name: np.asarray(surface, dtype=np.float64) for name, surface in panels.items()}
    top = max(float(surface.max()) for surface in heights.values())
    figure, axes = plt.subplots(
        1, len(heights), figsize=(4.3 * len(heights), 4.2), subplot_kw={"projection": "3d"}, squeeze=False
    )
    for panel, (name, height) in zip(axes[0], heights.items(), strict=True):
        _surface(panel, height, values, top)
        panel.set_title(name, fontsize=11)
    figure.subplots_adjust(left=0.01, right=0.94, bottom=0.06, top=0.94, wspace=0.12)
    return figure


def _surface(panel: Any, height: np.ndarray[Any, Any], values: dict[str, Any], top: float) -> None:
    """height: [tokens, channels]; axes are numbered in the record's own tokens and channels."""
    rows, columns = height.shape
    tokens = np.linspace(0, values.get("tokens", rows) - 1, rows)
    channels = np.linspace(0, values.get("channels", columns) - 1, columns)
    x, y = np.meshgrid(channels, tokens)
    panel.plot_surface(x, y, height, cmap="viridis", norm=PowerNorm(0.5, 0, top), rstride=1, cstride=1, linewidth=0)
    panel.set(xlabel="channel", ylabel="token", zlim=(0, top))
    panel.set_zlabel("magnitude")
    panel.view_init(elev=28, azim=-58)
    panel.tick_params(labelsize=8)


def _pooled(values: dict[str, Any]) -> str:
    return f"; a point is {values['pooling']}" if values.get("pooling") else ""


def drawn(record: Record, name: str) -> Drawn:
    """With its caption."""
    values = record["values"]
    caption = (
        f"Magnitudes of {values['site']} in layer {values['layer']} over tokens and channels, before and after a "
        f"change of basis, on one scale{_pooled(values)}. {conditions_of(record)}"
    )
    return Drawn(name, "Figure 1. Activations before and after rotation", caption, draw(record))
