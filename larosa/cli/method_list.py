"""The list of a comparison (larosa.cli.compare): its schema, and the order in which it is measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import Field, ValidationError

from larosa.config.base import Level, Names, Strict, readable
from larosa.config.run import ConfigError


class Entry(Strict):
    """One method of the list."""

    settings: Names
    schedules: Names | None = None
    levels: tuple[Level, ...] | None = None
    sessions: Names | None = None


class Comparison(Strict):
    """The list."""

    settings: Names = ()
    levels: tuple[Level, ...] = Field(min_length=1)
    schedules: dict[str, str | tuple[str, ...] | None]
    sessions: dict[str, Names] = Field(default={"": ()}, min_length=1)
    methods: tuple[Entry, ...] = Field(min_length=1)

    @classmethod
    def read(cls, path: Path) -> Comparison:
        """Raises ConfigError where the file is no comparison, or names a schedule or session that it does not
        define."""
        try:
            comparison = cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        except ValidationError as error:
            raise ConfigError(f"{path}: {readable(error, cls)}") from None
        for kind, known in (("schedules", comparison.schedules), ("sessions", comparison.sessions)):
            unknown = {name for entry in comparison.methods for name in getattr(entry, kind) or ()} - set(known)
            if unknown:
                raise ConfigError(f"{path} names {kind} that it does not define: {', '.join(sorted(unknown))}")
        return comparison

    def tasks(self) -> Iterator[tuple[str, Entry, float]]:
        """Session, method and level in the order of measuring; the dense model first in every session."""
        dense = Entry(settings=("method=dense",), schedules=(), levels=(self.levels[0],))
        for place, session in enumerate(self.sessions):
            entries = [e for e in self.methods if (not place if e.sessions is None else session in e.sessions)]
            if not entries:
                continue
            yield session, dense, self.levels[0]
            for level in dict.fromkeys([*self.levels, *(level for entry in entries for level in entry.levels or ())]):
                yield from ((session, entry, level) for entry in entries if level in (entry.levels or self.levels))
