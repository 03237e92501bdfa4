"""One measured run: a record as tables read it, with its tasks' scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from larosa.records.method_settings import method_of
from larosa_analysis.records.entry import Entry, Record
from larosa_analysis.records.outcomes import Score


@dataclass(frozen=True, eq=False)
class Run:
    """One measured run: the entry, and its tasks' scores by name."""

    entry: Entry
    scores: dict[str, Score]
    sources: tuple[Record, ...] = ()
    """The records that the run was put together from; empty of one that is one record."""

    @classmethod
    def of(cls, record: Record) -> Run:
        """Read a compact record. Raises RecordsError if it is none."""
        entry, scores = Entry.of(record), record["metrics"].get("zero_shot") or {}
        asked = record["config"]["evaluation"]["zero_shot"]
        return cls(entry, {task: Score.of(score, asked) for task, score in scores.items()})

    @property
    def records(self) -> tuple[Record, ...]:
        """Every record behind the run."""
        return self.sources or (self.entry.record,)

    @property
    def model(self) -> str:
        """The model's name."""
        return str(self.entry.record["model"]["name"])

    @property
    def preset(self) -> str:
        """The choice of conf/method that the method came from."""
        return str(self.entry.record["config"]["method"]["preset"])

    @property
    def method(self) -> str:
        """The method's label, without what is quantised."""
        return str(self.entry.record["label"])

    @property
    def config(self) -> dict[str, Any]:
        """The resolved settings."""
        config: dict[str, Any] = self.entry.record["config"]
        return config

    @property
    def settings(self) -> str:
        """The method's settings that shape its result, also those that its label does not tell."""
        used = {key: value for key, value in method_of(self.config).items() if key not in self._unused()}
        used["tuning_version"] = self.entry.record.get("tuning_version") if used.get("tuning") else None
        return str(sorted((key, str(value)) for key, value in used.items() if value not in (None, [], 0.0)))

    def _unused(self) -> set[str]:
        method = method_of(self.config)
        unused = {"preset"} | ({"ties", "rounding"} if method["selector"] == "threshold" else set())
        unused |= {"group_size"} if method["granularity"] != "group" else set()
        unused |= {"transform_dtype", "block_size"} if method["form"] != "online" else set()
        unused |= {"rotation_dtype"} if method["form"] != "simulated" else set()
        return unused | ({"low_rank_ratio", "low_rank_ratio_grid"} if method["name"] != "r_sparse" else set())
