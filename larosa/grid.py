"""The grid of a coefficient search on disk: one JSON file, whole after every cell, so that a search can go on.

    {"schema": 1, "identity": ..., "shaped_by": {...}, "cells": [{"h1": a1, ..., "perplexity": ...}, ...]}

A cell that cannot be measured says why under `impossible` and has no perplexity.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from pathlib import Path
from typing import Any

from larosa.errors import LarosaError
from larosa.store import digest, write_atomically
from larosa_analysis import checksum

log = logging.getLogger(__name__)

SCHEMA = 1
COLUMNS = ("h1", "h2", "h3", "h4", "perplexity", "standard_error", "impossible")

Cell = dict[str, Any]


class GridError(LarosaError):
    """A grid file holds another search, or nothing to choose from."""


class Grid:
    """The cells of one search, found again by its identity."""

    def __init__(self, path: Path, shaping: dict[str, Any], force: bool) -> None:
        """Read what is there. Raises GridError if that is another search and `force` does not allow to replace it."""
        self.path = path
        self.tokens_sha256 = ""
        self._shaping = shaping
        self._cells: dict[tuple[float, float], Cell] = {}
        if path.exists() and not force:
            self._read()

    def __contains__(self, alphas: tuple[float, float]) -> bool:
        return alphas in self._cells

    def add(self, cell: Cell) -> None:
        """Add a cell and write the file."""
        self._cells[cell["h1"], cell["h3"]] = cell
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(checksum.sealed(self.content()), indent=1).encode())

    def content(self) -> dict[str, Any]:
        """The JSON file's tree; cells by rising a1, then a3."""
        cells = [self._cells[key] for key in sorted(self._cells)]
        return {
            "schema": SCHEMA,
            "identity": digest(self._shaping),
            "shaped_by": self._shaping,
            "tokens_sha256": self.tokens_sha256,
            "cells": cells,
        }

    def best(self, alphas: tuple[float, ...]) -> Cell:
        """The cell of the smallest perplexity among `alphas` x `alphas`. Raises GridError if none was measured."""
        measured = [
            cell
            for (a1, a3), cell in sorted(self._cells.items())
            if a1 in alphas and a3 in alphas and cell["perplexity"] is not None
        ]
        if not measured:
            raise GridError(f"no cell of {self.path} could be measured: lower sparsity or change allocation.alphas")
        return min(measured, key=lambda cell: float(cell["perplexity"]))

    def write_csv(self, path: Path) -> None:
        """The cells as a table."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(self.content()["cells"])
        write_atomically(path, text.getvalue().encode())

    def _read(self) -> None:
        try:
            content = checksum.read(self.path)
            identity = (content["schema"], content["identity"])
            tokens = str(content["tokens_sha256"])
            cells = {
                (float(cell["h1"]), float(cell["h3"])): {name: cell[name] for name in COLUMNS}
                for cell in content["cells"]
            }
            for cell in cells.values():
                if cell["perplexity"] is not None and not math.isfinite(cell["perplexity"]):
                    raise ValueError(f"a perplexity is {cell['perplexity']}")
        except (ValueError, KeyError, TypeError, OSError) as error:
            log.warning("%s is damaged (%s): measured again", self.path, error)
            return
        if identity != (SCHEMA, digest(self._shaping)):
            raise GridError(
                f"{self.path} holds another search (model, method, level or calibration differ): choose another "
                "schedule.path, or force=true to replace it"
            )
        self._cells, self.tokens_sha256 = cells, tokens
