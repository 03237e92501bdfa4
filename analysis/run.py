"""One measured run: a record as tables read it, with its tasks' scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from analysis.outcomes import Score
from analysis.records import Entry, Record


@dataclass(frozen=True, eq=False)
class Run:
    """One measured run: the entry, and its tasks' scores by name."""

    entry: Entry
    scores: dict[str, Score]

    @classmethod
    def of(cls, record: Record) -> Run:
        """Read a compact record. Raises RecordsError if it is none."""
        scores = record["metrics"].get("zero_shot") or {}
        return cls(Entry.of(record), {task: Score.of(found) for task, found in scores.items()})

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.entry.record["model"]["name"])

    @property
    def preset(self) -> str:
        """The choice of conf/method that the method came from."""
        return str(self.entry.record["config"]["method"]["preset"])

    @property
    def config(self) -> dict[str, Any]:
        """The resolved settings."""
        found: dict[str, Any] = self.entry.record["config"]
        return found
