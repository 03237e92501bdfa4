"""Short names of methods and schedules in a table: what tells them apart, no more."""

from __future__ import annotations

import re
from collections.abc import Iterable

from larosa_analysis.records.run import Run


def short_names(of: Iterable[str]) -> dict[str, str]:
    """Label -> the preset, with those of its settings that other labels of the preset do not share."""
    labels = sorted(set(of))
    settings = {label: _settings(label) for label in labels}
    shortened = {}
    for label in labels:
        preset = label.partition(" (")[0]
        family = [settings[other] for other in labels if other.partition(" (")[0] == preset]
        distinct = [word for word in settings[label] if not all(word in others for others in family)]
        shortened[label] = f"{preset} ({', '.join(distinct)})" if distinct else preset
    return shortened


def _settings(label: str) -> list[str]:
    inner = label.partition(" (")[2].rstrip(")")
    return inner.split(", ") if inner else []


def short_schedule(run: Run) -> str:
    """A schedule's name; of a file without ending and without the method's name, which stands beside it."""
    name = run.entry.schedule.replace(".json", "")
    slug = re.sub(r"[^a-z0-9]+", "-", run.method.lower()).strip("-")
    return name.replace(f"-{slug}", "")
