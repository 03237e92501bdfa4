"""Measure methods at equal weight sparsity and at equal weight bytes read, each at its own best schedule.

    larosa compare sweeps/methods.yaml calibration.batch_size=8 [--records RECORDS.jsonl ...]
    larosa report runs

The list (YAML) holds `settings`, overrides for all; `levels`; `schedules`, name -> a list of overrides of
`larosa allocate` that finds one, the name of a schedule file with `{level}` in it, or nothing for a choice of
conf/schedule; and `methods`, each with its `settings`, optionally its own `schedules` and `levels`. All schedules are
measured for every method and level. A method whose thresholds achieve another sparsity is measured again at a corrected
target. A method with run-time overhead is then measured, on its best schedule, at the target whose saving is the level
once the overhead is paid.

`sessions` (optional), name -> overrides, repeats methods under other conditions that all runs of a session share:
calibration texts, seeds. A method names the sessions that it is measured in; without `sessions`, the first. Levels are
measured in their order, all methods of one before the next.

The model is loaded once per session. A record that exists is not measured again, so a comparison that was interrupted
goes on, and a run that another process measures is waited for. A run that fails leaves `failed.json`, as in a sweep,
and the others go on. How many runs are left, and about how long they take, is said before the first. What stands in
`--records`, files of compact records, counts as recorded: so a comparison goes on where only these were kept.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from larosa.cli import allocate
from larosa.cli.command import arguments, fail, read_settings
from larosa.cli.invocation import run_command
from larosa.cli.method_list import Comparison, Entry
from larosa.commands import typed
from larosa.config.run import ConfigError, RunConfig
from larosa.errors import LarosaError
from larosa.experiment.failures import RunFailedError
from larosa.experiment.plan_runs import PlannedRun, plan_runs
from larosa.experiment.results import Record, load_record, slug
from larosa.experiment.runner import record_of, require_measurable, stored
from larosa.experiment.session import Sessions, session_settings
from larosa.records import checksum
from larosa.records.disk import digest, locked
from larosa.records.packaged import locate
from larosa.sparsity.schedule import ScheduleError

log = logging.getLogger(__name__)

NEAR = 0.002
"""How far the achieved sparsity may lie from the target before the target is corrected."""
CORRECTIONS = 1
_RUN_STAGES = {"calibrate", "apply", "parity", "quantise", "perplexity", "errors", "zero_shot", "speed"}
"""Stages of a run; those of its session are not repeated."""


@dataclass
class _Work:
    """What all runs of a session share; it is opened when the first run needs it."""

    comparison: Comparison
    overrides: list[str]
    known: dict[str, Record] = field(default_factory=dict)
    """Identity -> compact record, of runs whose folders are elsewhere."""
    session: str = ""
    sessions: Sessions = field(default_factory=Sessions)
    failed: int = 0
    _composed: dict[tuple[str, ...], RunConfig] = field(default_factory=dict)

    def settings(self, entry: Entry, *more: str) -> list[str]:
        """The overrides of a run, as `larosa run` takes them."""
        shared = [*self.comparison.settings, *self.comparison.sessions[self.session]]
        return [*shared, *entry.settings, "baseline=none", *self.overrides, *more]

    def config(self, entry: Entry, target: float, *schedule: str) -> RunConfig:
        """The settings of a run at a target. They are composed once for all targets, which takes Hydra a second."""
        words = tuple(self.settings(entry, *schedule))
        if words not in self._composed:
            self._composed[words] = read_settings(list(words))
        return self._composed[words].model_copy(update={"sparsity": target})

    def compact(self, planned: PlannedRun) -> Record | None:
        """The compact record of a run, unless `force` asks for a new one."""
        return None if planned.config.force else self.known.get(digest(planned.identity))

    def record(self, entry: Entry, target: float, *schedule: str) -> Record:
        """The record of a run, from disk or measured now. Raises LarosaError."""
        config = self.config(entry, target, *schedule)
        label, planned = list(plan_runs(config).items())[-1]
        if (record := self.compact(planned) or stored(planned, label)) is not None:
            return record
        require_measurable(config)
        command = run_command(self.settings(entry, f"sparsity={target}", *schedule))
        return record_of(planned, self.sessions, command, label)


def compare(comparison: Comparison, overrides: list[str], known: Iterable[Path] = ()) -> int:
    """Measure everything; returns how many runs failed. Raises LarosaError for a list that cannot work.

    known: files of compact records that are not measured again.
    """
    work, tasks = _Work(comparison, overrides, _compact(known)), list(comparison.tasks())
    _check(work, tasks)
    log.info(_outlook(work, tasks))
    with logging_redirect_tqdm(), tqdm(tasks, unit="method and level") as bar:
        for session, entry, level in bar:
            bar.set_postfix_str(f"{session} {' '.join(entry.settings)} at {level:g}, {work.failed} failed")
            work.session = session
            _one(work, entry, level)
    return work.failed


def _compact(files: Iterable[Path]) -> dict[str, Record]:
    """Compact records by identity. Raises ConfigError that names a line that is none."""
    records: dict[str, Record] = {}
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                record = checksum.parsed(line)
                records[record["identity"]] = record
            except (checksum.DamagedError, KeyError) as error:
                raise ConfigError(f"--records {path}, line {number} is no compact record ({error})") from error
    return records


def _check(work: _Work, tasks: list[tuple[str, Entry, float]]) -> None:
    """Find mistakes first, in seconds. Raises LarosaError."""
    shared: dict[str, object] = {}
    for work.session, entry, level in tasks:
        config = work.config(entry, level, "schedule=uniform")
        plan_runs(config)
        settings = session_settings(config)
        if shared.setdefault(work.session, settings) != settings:
            raise ConfigError(
                f"{' '.join(entry.settings)}: one session serves all methods, so model, calibration, texts, "
                "evaluation.perplexity and seed belong into the list's own settings, or into one of its sessions"
            )


def _outlook(work: _Work, tasks: list[tuple[str, Entry, float]]) -> str:
    """How many runs are left, at least, and how long they take where recorded ones tell it."""
    left, recorded, walls = 0, 0, list[float]()
    for work.session, entry, level in tasks:
        for schedule in _choices(work, entry):
            record = None
            if schedule is not None:
                planned = list(plan_runs(work.config(entry, level, *schedule)).values())[-1]
                record = work.compact(planned)
                if record is None and not planned.config.force:
                    record = load_record(planned.folder, planned.identity)
            if record is None:
                left += 1
            else:
                recorded += 1
                stages = record.get("stages", {})  # compact records have none
                walls += [sum(stages[name]["wall_s"] for name in _RUN_STAGES & stages.keys())] if stages else []
    if not walls or not left:
        return f"{left} runs to measure, {recorded} recorded"
    return (
        f"{left} runs to measure, {recorded} recorded. A recorded one took {median(walls):.1f} s (median), so these "
        f"take about {left * median(walls) / 60:.0f} minutes, and more where targets are corrected"
    )


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
            plan_runs(work.config(entry, round(level + overhead, 5), *schedule))
        except ScheduleError as error:  # a site would need a level above 1: the next best schedule
            log.warning("%s at equal weight bytes read: %s", " ".join(entry.settings), error)
            continue
        _achieved(work, entry, level, overhead, schedule)
        return


def _names(work: _Work, entry: Entry) -> Iterable[str]:
    return (work.comparison.schedules if entry.schedules is None else entry.schedules) or ("uniform",)


def _choices(work: _Work, entry: Entry) -> Iterator[tuple[str, ...] | None]:
    """The overrides of each schedule that needs no search, None for the others."""
    for name in _names(work, entry):
        yield (f"schedule={name}",) if work.comparison.schedules.get(name) is None else None


def _schedules(work: _Work, entry: Entry, level: float) -> Iterator[tuple[str, ...]]:
    """The overrides that choose each schedule; those that must be found are found first."""
    for name in _names(work, entry):
        search = work.comparison.schedules.get(name)
        if search is None:
            yield (f"schedule={name}",)
        elif isinstance(search, str):
            yield ("schedule=file", f"schedule.path={search.format(level=f'{level:g}')}")
        elif path := _searched(work, entry, level, name, search):
            yield ("schedule=file", f"schedule.path={path}")


def _searched(work: _Work, entry: Entry, level: float, name: str, search: tuple[str, ...]) -> Path | None:
    """The file of a schedule, searched for unless it is there already; None where the search failed."""
    config = allocate.uncompensated(work.config(entry, level, *search))
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
    exact = work.config(entry, target, *schedule).method.selector == "top_k"
    try:
        for _ in range(1 + CORRECTIONS):
            record = work.record(entry, round(asked, 5), *schedule)
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
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--records", nargs="+", action="extend", default=[], type=Path)
    try:
        given = parser.parse_intermixed_args(arguments("compare"))
        if not given.words:
            raise ConfigError(f"name the list: {typed('compare')} sweeps/methods.yaml [overrides]")
        listed = Comparison.read(Path(locate(given.words[0])).expanduser())
        failed = compare(listed, given.words[1:], given.records)
    except (LarosaError, OSError, argparse.ArgumentError) as error:
        fail(error)
    if failed:
        fail(f"{failed} runs could not be measured, they are named above; all others are recorded")


if __name__ == "__main__":
    main()
