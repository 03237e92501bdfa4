"""How figures look: one colour and marker a method throughout, from Okabe and Ito's palette.

The palette survives colour blindness; line styles and markers differ too, so grey print keeps them apart.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from typing import Literal

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LineStyle = Literal["-", "--", "-.", ":"]

METHOD_STYLE: dict[str, tuple[str, str]] = {
    "dense": ("#666666", "s"),
    "magnitude": ("#E69F00", "o"),
    "larosa": ("#0072B2", "D"),
    "teal": ("#009E73", "^"),
    "cats": ("#CC79A7", "v"),
    "wina": ("#56B4E9", "P"),
    "r_sparse": ("#D55E00", "X"),
    "larosa/paper": ("#0072B2", "D"),
    "larosa/tuned": ("#AA4499", "d"),
    "larosa/block_diagonal": ("#332288", ">"),
    "larosa/output_aware": ("#117733", "<"),
    "larosa/official": ("#882255", "h"),
    "larosa/learned": ("#999933", "p"),
    "wina/transform": ("#44AA99", "8"),
}
"""Preset, or method family (before its slash), -> colour, marker."""

SITE_STYLE: dict[str, tuple[str, LineStyle, str]] = {
    "h1": ("#0072B2", "-", "attention input (q, k, v)"),
    "h2": ("#E69F00", "--", "attention output (o)"),
    "h3": ("#009E73", "-.", "MLP input (gate, up)"),
    "h4": ("#CC79A7", ":", "MLP hidden (down)"),
}


SPARE = [
    ("#661100", "H"), ("#6699CC", "<"), ("#000000", "x"), ("#F0E442", "P"), ("#DDAA33", "*"), ("#EE6677", "8"),
    ("#228833", "p"), ("#4477AA", "h"), ("#BBBBBB", ">"), ("#AA3377", "s"),
]  # fmt: skip
"""For a second and further variants of one method in one figure."""

LINE_STYLES: tuple[LineStyle, ...] = ("-", "--", "-.", ":")
"""Taken in turn where a figure has many methods."""


def method_styles(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method of a figure: its preset's own, or its family's; a second one takes a spare."""
    styles: dict[str, tuple[str, str]] = {}
    spare = iter(SPARE)
    for name in names:
        preset, family = name.partition(" (")[0], re.split(r"[^a-z_]", name)[0]
        style = METHOD_STYLE.get(preset, METHOD_STYLE.get(family, ("#999999", "*")))
        styles[name] = next(spare, ("#999999", "*")) if style in styles.values() else style
    return styles


def png(figure: Figure) -> bytes:
    """The figure as a file's content; it is closed."""
    return _saved(figure, "png", close=True)


def both(figure: Figure) -> dict[str, bytes]:
    """Ending -> content, as PNG and PDF, without the time in it; the figure is closed."""
    image = _saved(figure, "png", close=False)
    figure.set_layout_engine("none")  # it has found its places: once is enough
    return {"png": image, "pdf": _saved(figure, "pdf", close=True)}


def _saved(figure: Figure, ending: str, close: bool) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, dpi=150, format=ending, metadata={"CreationDate": None} if ending == "pdf" else None)
    if close:
        plt.close(figure)
    return image.getvalue()


def level_colours(levels: list[float]) -> list[tuple[float, float, float, float]]:
    """Dark to light with rising level, without the pale end, so that grey print keeps the order."""
    return [plt.get_cmap("viridis")(0.85 * place / max(len(levels) - 1, 1)) for place in range(len(levels))]


def plain(axes: Axes) -> None:
    """Without the frame's upper and right line."""
    axes.spines[["top", "right"]].set_visible(False)
