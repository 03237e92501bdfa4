"""Measure methods at equal byte-weighted level and at equal net bytes, each at its own best schedule.

    python -m larosa.compare sweeps/methods.yaml calibration.batch_size=8
    python -m larosa_analysis.compact runs records.jsonl && python -m larosa_analysis.methods records.jsonl

The list (YAML) holds `settings`, overrides for all; `levels`; `schedules`, name -> a list of overrides of
`larosa.allocate` that finds one, the name of a schedule file with `{level}` in it, or nothing for a choice of
conf/schedule; and `methods`, each with its `settings`, optionally its own `schedules` and `levels`. All schedules are
measured for every method and level. A method that misses a level, because its thresholds realise another one, is
measured again at a corrected level. One with run-time extras is then measured, on its best schedule, at the level whose
saving is the target once they are paid.

The model is loaded once. A record that exists is not measured again, so a comparison that was interrupted goes on; a
cell that fails is named and the others go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from pydantic import Field, ValidationError
from tqdm import tqdm

from larosa import allocate, models, results
from larosa.cells import Cell, plan_cells
from larosa.command import arguments, fail, read_settings
from larosa.config import ConfigError, RunConfig
from larosa.errors import LarosaError
from larosa.packaged import found
from larosa.pipeline import Bench, measure
from larosa.results import Record
from larosa.schema import Level, Names, Strict, readable
from larosa.sites import ModelShape
from larosa.sparsity.schedule import ScheduleError
from larosa.sparsity.schedule_file import read_schedule
from larosa.store import digest
from larosa.workbench import Workbench, bench_settings

log = logging.getLogger(__name__)

NEAR = 0.002
"""How far a realised level may lie from its target before it is corrected."""
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
            found = cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        except ValidationError as error:
            raise ConfigError(f"{path}: {readable(error, cls)}") from None
        unknown = {name for entry in found.methods for name in entry.schedules or ()} - set(found.schedules)
        if unknown:
            raise ConfigError(f"{path} names schedules that it does not define: {', '.join(sorted(unknown))}")
        return found


@dataclass
class _Work:
    """What all cells share; the bench is opened when the first cell needs it."""

    comparison: Comparison
    overrides: list[str]
    workbench: Workbench = field(default_factory=Workbench)
    failed: int = 0

    def config(self, entry: Entry, *more: str) -> RunConfig:
        return read_settings([*self.comparison.settings, *entry.settings, "baseline=none", *self.overrides, *more])

    def open(self, config: RunConfig) -> Bench:
        results.check_output(config)
        return self.workbench.open(config)

    def record(self, config: RunConfig) -> Record:
        """The record of a cell, from disk or measured now."""
        cell: Cell = list(plan_cells(config).values())[-1]
        found = results.load_record(cell.folder, cell.identity)
        if found is None or config.force:
            found = measure(cell, self.open(config))
            results.save_record(cell.folder, found)
        return found


def compare(comparison: Comparison, overrides: list[str]) -> int:
    """Measure everything; returns how many cells failed. Raises LarosaError for a list that cannot work."""
    work = _Work(comparison, overrides)
    entries = [Entry(settings=("method=dense",), schedules=(), levels=(comparison.levels[0],)), *comparison.methods]
    first = bench_settings(work.config(entries[0]))
    for entry in entries:
        for level in entry.levels or comparison.levels:  # mistakes first, in seconds
            config = work.config(entry, f"sparsity={level}", "schedule=uniform")
            plan_cells(config)
            if bench_settings(config) != first:
                raise ConfigError(
                    f"{' '.join(entry.settings)}: one bench serves all methods, so model, calibration, texts, "
                    "evaluation.perplexity and seed belong into the list's own settings"
                )
    tasks = [(entry, level) for entry in entries for level in entry.levels or comparison.levels]
    with tqdm(tasks, unit="method and level") as bar:
        for entry, level in bar:
            bar.set_postfix_str(f"{' '.join(entry.settings)} at {level:g}, {work.failed} failed")
            _one(work, entry, level)
    return work.failed


def _one(work: _Work, entry: Entry, level: float) -> None:
    """All schedules of a method at one level, then the best of them at equal net bytes."""
    found: list[tuple[float, tuple[str, ...], Record]] = []
    for chosen in _schedules(work, entry, level):
        record = _guarded(work, entry, lambda chosen=chosen: _realised(work, entry, level, 0.0, chosen))  # type: ignore[misc]
        if record is not None:
            found.append((_mean_perplexity(record), chosen, record))
    if not found or entry.settings == ("method=dense",):
        return
    for _ppl, chosen, record in sorted(found, key=lambda item: item[0]):
        extras = float(record["metrics"]["accounting"]["extras_share"])
        if extras == 0:
            return
        try:
            plan_cells(work.config(entry, f"sparsity={level + extras}", *chosen))
        except ScheduleError as error:  # a site would need a level above 1: the next best schedule
            log.warning("%s at equal net bytes: %s", " ".join(entry.settings), error)
            continue
        _guarded(work, entry, lambda: _realised(work, entry, level, extras, chosen))  # noqa: B023  # called at once
        return


def _schedules(work: _Work, entry: Entry, level: float) -> Iterator[tuple[str, ...]]:
    """The overrides that choose each schedule; those that must be found are found first."""
    names = work.comparison.schedules if entry.schedules is None else entry.schedules
    for name in names or ("uniform",):
        search = work.comparison.schedules.get(name)
        if search is None or isinstance(search, str):
            known = f"schedule={name}" if search is None else "schedule=file"
            yield (known,) if search is None else (known, f"schedule.path={search.format(level=f'{level:g}')}")
            continue
        config = work.config(entry, f"sparsity={level}", *search)
        found = [list(plan_cells(config).values())[-1].identity, config.allocation.model_dump(mode="json")]
        label = f"{results.slug(config.method.label)}-{digest({'search': found})[:8]}"
        path = Path(config.output).expanduser() / "schedules" / f"{name}-{level:g}-{label}.json"
        config = config.model_copy(update={"schedule": config.schedule.model_copy(update={"path": str(path)})})

        def find(config: RunConfig = config) -> Record:
            allocate.search(config, work.open(config))
            return {}

        if _is_found(path, config) or _guarded(work, entry, find) is not None:
            yield ("schedule=file", f"schedule.path={path}")


def _is_found(path: Path, config: RunConfig) -> bool:
    """Whether the schedule is there and intact; a damaged one is named, to be found again."""
    if config.force or not path.exists():
        return False
    try:
        read_schedule(path, ModelShape.of(models.model_config(config.model)))
    except ScheduleError as error:
        log.warning("%s: found again", error)
        return False
    return True


def _realised(work: _Work, entry: Entry, target: float, extras: float, schedule: tuple[str, ...]) -> Record:
    """The record whose realised saving, extras paid, is nearest the target; thresholds are corrected towards it."""
    asked, best = target + extras, None
    for _ in range(1 + CORRECTIONS):
        record = work.record(work.config(entry, f"sparsity={round(asked, 5)}", *schedule))
        measured = list(record["metrics"]["measured_sparsity"].values())
        realised = sum(m["byte_weighted_mean"] for m in measured) / len(measured) if measured else asked
        miss = abs(realised - target - extras)
        if best is None or miss < best[0]:
            best = (miss, record)
        if record["config"]["method"]["rule"] == "top_k" or miss < NEAR or realised <= 0:
            break
        asked *= (target + extras) / realised
    assert best is not None
    return best[1]


def _mean_perplexity(record: Record) -> float:
    """The mean logarithm of the texts' perplexities: by it the schedules of one method are ranked."""
    nats = [sum(text["block_nll_nats"]) / text["predicted_tokens"] for text in record["metrics"]["perplexity"].values()]
    return float(sum(nats) / len(nats))


def _guarded(work: _Work, entry: Entry, do: Callable[[], Record]) -> Record | None:
    try:
        return do()
    except LarosaError as error:
        work.failed += 1
        log.error("%s: %s", " ".join(entry.settings), error)
        return None


def main() -> None:
    """The list's file, then overrides."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s %(levelname)s] %(message)s", datefmt="%H:%M:%S")
    words = arguments(__doc__)
    try:
        if not words:
            raise ConfigError("name the list: python -m larosa.compare sweeps/methods.yaml [overrides]")
        failed = compare(Comparison.read(Path(found(words[0])).expanduser()), words[1:])
    except (LarosaError, OSError) as error:
        fail(error)
    if failed:
        fail(f"{failed} cells could not be measured, they are named above; all others are recorded")


if __name__ == "__main__":
    main()
