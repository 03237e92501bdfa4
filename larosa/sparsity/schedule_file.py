"""A schedule file: coefficients per layer and site as JSON.

    {"schema": 1, "layers": L, "widths": {"h1": D, ...}, "levels": {"h1": [L numbers], ...}, "made_by": {...}}

`made_by` is the provenance: model, method, target sparsity and calibration tokens. `checksum` shows that the file is
unchanged. Files written by hand may omit both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from larosa.data.tensor_store import write_atomically
from larosa.errors import LarosaError
from larosa.models.architecture import SITES
from larosa.models.sites import ModelShape
from larosa.records import checksum
from larosa.records.disk import read_object

SCHEMA = 1


class ScheduleError(LarosaError):
    """The schedule cannot give the target sparsity, or belongs to another model."""


def write_schedule(
    path: Path, shape: ModelShape, coefficients: Mapping[str, Sequence[float]], made_by: Mapping[str, Any]
) -> None:
    """Write coefficients, site -> one per layer."""
    content = {
        "schema": SCHEMA,
        "layers": shape.layers,
        "widths": {site: shape.sites[site].width for site in SITES},
        "levels": {site: list(coefficients[site]) for site in SITES},
        "made_by": made_by,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(checksum.sealed(content), indent=1).encode())


def read_schedule(path: Path, shape: ModelShape) -> dict[str, tuple[float, ...]]:
    """Site -> a coefficient per layer. Raises ScheduleError that names what is wrong with the file."""
    try:
        content = read_object(path)
        if checksum.FIELD in content:
            checksum.opened(content)
        schema = content["schema"]
        widths = {site: int(content["widths"][site]) for site in SITES}
        levels = {site: tuple(float(value) for value in content["levels"][site]) for site in SITES}
        layers = int(content["layers"])
    except OSError as error:
        raise ScheduleError(f"schedule file {path} cannot be read: {error}") from error
    except checksum.DamagedError as error:
        raise ScheduleError(
            f"schedule file {path}: {error}. Find the schedule again; if you changed it by hand, remove its checksum "
            "and made_by"
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ScheduleError(
            f"schedule file {path} is not a schedule ({type(error).__name__}: {error}); expected JSON with "
            "schema, layers, widths and levels per site (larosa/sparsity/schedule_file.py shows it)"
        ) from error
    if schema != SCHEMA:
        raise ScheduleError(f"schedule file {path} has schema {schema!r}, this version of larosa reads {SCHEMA}")
    expected = {site: shape.sites[site].width for site in SITES}
    if layers != shape.layers or widths != expected or any(len(v) != layers for v in levels.values()):
        raise ScheduleError(
            f"schedule file {path} is for another model: it has {layers} layers of widths {widths}, this "
            f"model has {shape.layers} of {expected}"
        )
    for site in SITES:
        for layer, value in enumerate(levels[site]):
            if not (math.isfinite(value) and value >= 0):
                raise ScheduleError(
                    f"schedule file {path}: {site}, layer {layer} is {value}; a coefficient is finite and not negative"
                )
    return levels


def read_made_by(path: Path) -> dict[str, Any]:
    """The `made_by` of a file that `read_schedule` accepts; empty where there is none."""
    made_by = read_object(path).get("made_by")
    return made_by if isinstance(made_by, dict) else {}
