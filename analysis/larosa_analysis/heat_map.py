"""The grid of a coefficient search as a heat map: perplexity over a1 and a3, impossible cells grey, the best marked.

python -m larosa_analysis.heat_map schedules/smollm2-135m/algorithm1.grid.json
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from larosa_analysis import checksum

CLIPPED = 1.5
"""Colours end at so many times the smallest perplexity."""


def draw(grid: dict[str, Any], path: Path) -> None:
    """Write a PNG of a grid file's tree (see larosa.grid)."""
    rows = sorted({cell["h1"] for cell in grid["cells"]})
    columns = sorted({cell["h3"] for cell in grid["cells"]})
    values = np.full((len(rows), len(columns)), np.nan)
    for cell in grid["cells"]:
        if cell["perplexity"] is not None:
            values[rows.index(cell["h1"]), columns.index(cell["h3"])] = cell["perplexity"]
    figure, axes = plt.subplots(figsize=(3.2 + 0.45 * len(columns), 2.2 + 0.35 * len(rows)), layout="constrained")
    axes.set_facecolor("0.85")
    measured = np.isfinite(values).any()
    top = min(np.nanmax(values), CLIPPED * np.nanmin(values)) if measured else 1.0  # a broken cell would hide the rest
    image = axes.imshow(values, origin="lower", aspect="auto", cmap="viridis_r", vmax=top)
    if measured:
        best = np.unravel_index(np.nanargmin(values), values.shape)
        axes.plot(best[1], best[0], marker="*", markersize=14, color="#D55E00", markeredgecolor="white")
    axes.set_xticks(range(len(columns)), [f"{value:.2f}" for value in columns])
    axes.set_yticks(range(len(rows)), [f"{value:.2f}" for value in rows])
    axes.set_xlabel("coefficient of h3 (MLP input)")
    axes.set_ylabel("coefficient of h1 (attention input)")
    figure.colorbar(image, label="perplexity (lower is better)", extend="max")
    shaping = grid["shaped_by"]
    axes.set_title(
        f"{shaping['model']['name']}, {shaping['method']['name']}, sparsity={shaping['sparsity']:g}", fontsize=10
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(checksum.read(source), source.with_suffix(".png"))
