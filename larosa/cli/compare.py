"""Measure methods at equal weight sparsity and at equal weight bytes read, each at its own best schedule.

    larosa compare sweeps/methods.yaml calibration.batch_size=8
    larosa report runs

The list (YAML) holds `settings`, overrides for all; `levels`; `schedules`, name -> a list of overrides of
`larosa allocate` that finds one, the name of a schedule file with `{level}` in it, or nothing for a choice of
conf/schedule; and `methods`, each with its `settings`, optionally its own `schedules` and `levels`. All schedules are
measured for every method and level. A method whose thresholds achieve another sparsity is measured again at a corrected
target. A method with run-time overhead is then measured, on its best schedule, at the target whose saving is the level
once the overhead is paid.

The model is loaded once. A record that exists is not measured again, so a comparison that was interrupted goes on, and
a run that another process measures is waited for. A run that fails leaves `failed.json`, as in a sweep, and the others
go on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import Field, ValidationError
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from larosa.cli import allocate
from larosa.cli.command import arguments, fail, read_settings
from larosa.cli.invocation import run_command
from larosa.commands import typed
from larosa.config.base import Level, Names, Strict, readable
from larosa.config.run import ConfigError, RunConfig
from larosa.errors import LarosaError
from larosa.experiment.failures import RunFailedError
from larosa.experiment.plan_runs import plan_runs
from larosa.experiment.results import Record, slug
from larosa.experiment.runner import record_of, require_measurable, stored
from larosa.experiment.session import Sessions, session_settings
from larosa.records.disk import digest, locked
from larosa.records.packaged import found
from larosa.sparsity.schedule import ScheduleError

log = logging.getLogger(__name__)

NEAR = 0.002
"""How far the achieved sparsity may lie from the target before the target is corrected."""
CORRECTIONS = 1


class Entry(Strict):
    """One method of the list."""

    settings: Names
    schedules: Names | None = None
    levels: tuple[Level, ...] | None = None


class Comparison(Strict):
    """The list."""

    settings: Names = ()
    levels: tuple[Level, ...] = Field(min_length=1)
    schedules: dict[str, str | tuple[str, ...] | None]
    methods: tuple[Entry, ...] = Field(min_length=1)

    @classmethod
    def read(cls, path: Path) -> Comparison:
        """Raises ConfigError where the file is no comparison, or names a schedule that it does not define."""
        try:
            comparison = cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        except ValidationError as error:
            raise ConfigError(f"{path}: {readable(error, cls)}") from None
        unknown = {name for entry in comparison.methods for name in entry.schedules or ()} - set(comparison.schedules)
        if unknown:
            raise ConfigError(f"{path} names schedules that it does not define: {', '.join(sorted(unknown))}")
        return comparison


@dataclass
class _Work:
    """What all runs share; the session is opened when the first run needs it."""

    comparison: Comparison
    overrides: list[str]
    sessions: Sessions = field(default_factory=Sessions)
    failed: int = 0

    def settings(self, entry: Entry, *more: str) -> list[str]:
        return [*self.comparison.settings, *entry.settings, "baseline=none", *self.overrides, *more]

    def config(self, entry: Entry, *more: str) -> RunConfig:
        return read_settings(self.settings(entry, *more))

    def record(self, entry: Entry, *more: str) -> Record:
        """The record of a run, from disk or measured now. Raises LarosaError."""
        config = self.config(entry, *more)
        label, planned = list(plan_runs(config).items())[-1]
        if (record := stored(planned, label)) is not None:
            return record
        require_measurable(config)
        return record_of(planned, self.sessions, run_command(self.settings(entry, *more)), label)


def compare(comparison: Comparison, overrides: list[str]) -> int:
    """Measure everything; returns how many runs failed. Raises LarosaError for a list that cannot work."""
    work = _Work(comparison, overrides)
    entries = [Entry(settings=("method=dense",), schedules=(), levels=(comparison.levels[0],)), *comparison.methods]
    first = session_settings(work.config(entries[0]))
    for entry in entries:
        for level in entry.levels or comparison.levels:  # mistakes first, in seconds
            config = work.config(entry, f"sparsity={level}", "schedule=uniform")
            plan_runs(config)
            if session_settings(config) != first:
                raise ConfigError(
                    f"{' '.join(entry.settings)}: one session serves all methods, so model, calibration, texts, "
                    "evaluation.perplexity and seed belong into the list's own settings"
                )
    tasks = [(entry, level) for entry in entries for level in entry.levels or comparison.levels]
    with logging_redirect_tqdm(), tqdm(tasks, unit="method and level") as bar:
        for entry, level in bar:
            bar.set_postfix_str(f"{' '.join(entry.settings)} at {level:g}, {work.failed} failed")
            _one(work, entry, level)
    return work.failed


def _one(work: _Work, entry: Entry, level: float) -> None:
    """All schedules of a method at one level, then the best of them at equal weight bytes read."""
    measured: list[tuple[float, tuple[str, ...], Record]] = []
    for schedule in _schedules(work, entry, level):
        record = _achieved(work, entry, level, 0.0, schedule)
        if record is not None:
            measured.append((_mean_nats(record), schedule, record))
    if not measured or entry.settings == ("method=dense",):
        return
    for _nats, schedule, record in sorted(measured, key=lambda item: item[0]):
        overhead = float(record["metrics"]["accounting"]["overhead_fraction"])
        if overhead == 0:
            return
        try:
            plan_runs(work.config(entry, f"sparsity={level + overhead}", *schedule))
        except ScheduleError as error:  # a site would need a level above 1: the next best schedule
            log.warning("%s at equal weight bytes read: %s", " ".join(entry.settings), error)
            continue
        _achieved(work, entry, level, overhead, schedule)
        return


def _schedules(work: _Work, entry: Entry, level: float) -> Iterator[tuple[str, ...]]:
    """The overrides that choose each schedule; those that must be found are found first."""
    names = work.comparison.schedules if entry.schedules is None else entry.schedules
    for name in names or ("uniform",):
        search = work.comparison.schedules.get(name)
        if search is None:
            yield (f"schedule={name}",)
        elif isinstance(search, str):
            yield ("schedule=file", f"schedule.path={search.format(level=f'{level:g}')}")
        elif path := _searched(work, entry, level, name, search):
            yield ("schedule=file", f"schedule.path={path}")


def _searched(work: _Work, entry: Entry, level: float, name: str, search: tuple[str, ...]) -> Path | None:
    """The file of a schedule, searched for unless it is there already; None where the search failed."""
    config = work.config(entry, f"sparsity={level}", *search)
    identity = [list(plan_runs(config).values())[-1].identity, config.allocation.model_dump(mode="json")]
    label = f"{slug(config.method.label)}-{digest({'search': identity})[:8]}"
    path = Path(config.output).expanduser() / "schedules" / f"{name}-{level:g}-{label}.json"
    config = config.model_copy(update={"schedule": config.schedule.model_copy(update={"path": str(path)})})
    try:
        if not allocate.is_intact(path, config):
            require_measurable(config)
            with locked(path):
                if not allocate.is_intact(path, config):
                    allocate.search(config, work.sessions.open(config))
    except LarosaError as error:
        work.failed += 1
        log.error("%s, schedule %s: %s", " ".join(entry.settings), name, error)
        return None
    return path


def _achieved(work: _Work, entry: Entry, target: float, overhead: float, schedule: tuple[str, ...]) -> Record | None:
    """The record whose achieved saving, overhead paid, is nearest the target; None where none could be measured.

    The targets of methods with thresholds are corrected.
    """
    asked, best = target + overhead, None
    exact = work.config(entry).method.selector == "top_k"
    try:
        for _ in range(1 + CORRECTIONS):
            record = work.record(entry, f"sparsity={round(asked, 5)}", *schedule)
            texts = list(record["metrics"]["achieved_sparsity"].values())
            achieved = sum(text["weight_sparsity_mean"] for text in texts) / len(texts) if texts else asked
            miss = abs(achieved - target - overhead)
            if best is None or miss < best[0]:
                best = (miss, record)
            if exact or miss < NEAR or achieved <= 0:
                break
            asked *= (target + overhead) / achieved
    except LarosaError as error:
        work.failed += 1
        if not isinstance(error, RunFailedError):  # that one is named already
            log.error("%s: %s", " ".join(entry.settings), error)
    return best[1] if best else None


def _mean_nats(record: Record) -> float:
    """The mean logarithm of the texts' perplexities: by it the schedules of one method are ranked."""
    nats = [sum(text["block_nll_nats"]) / text["predicted_tokens"] for text in record["metrics"]["perplexity"].values()]
    return float(sum(nats) / len(nats))


def main() -> None:
    """The list's file, then overrides."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s %(levelname)s] %(message)s", datefmt="%H:%M:%S")
    words = arguments("compare")
    try:
        if not words:
            raise ConfigError(f"name the list: {typed('compare')} sweeps/methods.yaml [overrides]")
        failed = compare(Comparison.read(Path(found(words[0])).expanduser()), words[1:])
    except (LarosaError, OSError) as error:
        fail(error)
    if failed:
        fail(f"{failed} runs could not be measured, they are named above; all others are recorded")


if __name__ == "__main__":
    main()
