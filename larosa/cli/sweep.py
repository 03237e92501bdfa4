"""The sweep around the runs, whichever launcher starts them: what came of each, a progress line, the exit status.

Every run leaves one small file in the sweep's own folder below `output`; the process that started the sweep counts
them. So runs in this process, in others, and on other machines that share the disk are counted alike:

    larosa run --config-dir sweeps --config-name table02 -m
    table02: 12 of 48 runs done, 1 failed, 35 left, 1:02:11 left
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from threading import Event, Thread
from typing import Any

from filelock import FileLock, Timeout
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from larosa.commands import pip_install, typed
from larosa.errors import described
from larosa.records.disk import digest, read_object, write_atomically

EXTRAS = {"hydra-joblib-launcher": "launchers", "hydra-submitit-launcher": "launchers", "hydra-ray-launcher": "ray"}
"""Package of a launcher -> the extra of this project that installs it."""
OmegaConf.register_new_resolver("home", lambda path: str(Path(path).expanduser()), replace=True)  # in conf/config.yaml
_POLL_S = 1.0
_FOLDER = ".sweep-"


@dataclass
class Outcome:
    """What came of one run."""

    overrides: list[str]
    failed: dict[str, str] = field(default_factory=dict)
    """Label of a run -> message."""
    measured: bool = False
    """False: all its records were there before."""


@dataclass(frozen=True)
class Sweep:
    """The sweep that a run belongs to, as the run's own settings say."""

    group: str
    """One W&B group for a sweep and its continuations."""
    folder: Path
    starter: int
    """Process that started the sweep: runs in others show no bars, which would write over each other."""
    program: str
    """How that process was started, for commands that measure a run again: a launcher's workers cannot tell."""

    @classmethod
    def of(cls, hydra: Any) -> Sweep | None:
        """None for a run that no sweep started."""
        settings = hydra.callbacks.get("sweep") or {}
        if not settings.get("folder"):
            return None
        return cls(settings["group"], Path(settings["folder"]), int(settings["starter"]), settings["program"])

    def note(self, outcome: Outcome) -> None:
        """Leave the outcome for the process that counts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{digest({'overrides': outcome.overrides})}.json"
        write_atomically(path, json.dumps(asdict(outcome)).encode())

    def outcomes(self) -> list[Outcome]:
        """Of all runs that have ended; one whose file is damaged counts as not ended."""
        return [outcome for path in sorted(self.folder.glob("*.json")) if (outcome := _outcome(path)) is not None]


def _outcome(path: Path) -> Outcome | None:
    try:
        outcome = Outcome(**read_object(path))
    except (OSError, ValueError, TypeError):
        return None
    return outcome if isinstance(outcome.overrides, list) and isinstance(outcome.failed, dict) else None


def runs_of(config: DictConfig) -> list[list[str]]:
    """The overrides of each run of the sweep that Hydra composed. Raises HydraException where they do not parse."""
    return expand(config.hydra.sweeper.get("params") or {}, list(config.hydra.overrides.task))


def expand(params: Mapping[Any, Any], words: Sequence[str]) -> list[list[str]]:
    """The overrides of each run: the sweep's own parameters, then the command line's."""
    overrides = OverridesParser.create().parse_overrides([*(f"{key}={value}" for key, value in params.items()), *words])
    return [list(run) for run in BasicSweeper.split_arguments(overrides, None)[0]]


def progress(name: str, total: int, outcomes: list[Outcome], elapsed_s: float) -> str:
    """The progress line. The time left is that of the runs left at the pace of those that were measured."""
    failed, measured = sum(bool(one.failed) for one in outcomes), sum(one.measured for one in outcomes)
    left = total - len(outcomes)
    line = f"{name}: {len(outcomes) - failed} of {total} runs done, {failed} failed, {left} left"
    if left and measured:
        line += f", {timedelta(seconds=round(left * elapsed_s / measured))} left"
    return line


class SweepCallback(Callback):
    """Hydra's notice of a sweep's start and end. Its settings are filled by the start, for the runs to read."""

    def __init__(
        self,
        folder: str | None = None,
        group: str | None = None,
        starter: str | None = None,
        program: str | None = None,
    ) -> None:
        self._line: ProgressLine | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_line": None}  # launchers send the callback to their workers, which count nothing

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Name the sweep, tell its runs, start counting. Ends the process where the launcher is not installed."""
        _require(str(config.hydra.launcher["_target_"]).split(".")[1].replace("_", "-"))
        runs, name = runs_of(config), str(config.hydra.job.config_name)
        group = f"{name.replace('/', '-')}-{digest({'runs': runs})[:6]}"
        folder = Path(str(config.output)).expanduser().absolute() / f"{_FOLDER}{group}-{time.time_ns()}"
        with read_write(config), open_dict(config):
            told = {"folder": str(folder), "group": group, "starter": str(os.getpid()), "program": typed("run")}
            for key, value in told.items():
                quoted = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
                config.hydra.overrides.hydra.append(f"hydra.callbacks.sweep.{key}={quoted}")
        self._line = ProgressLine(Sweep(group, folder, os.getpid(), typed("run")), name, len(runs))
        try:
            self._line.start()
        except OSError as error:  # Hydra would make a warning of it and go on
            _say(f"ERROR: the sweep cannot be counted in output={config.output}: {described(error)}")
            sys.exit(2)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Name what failed and end the process with status 2 if anything did."""
        if self._line is None:
            return
        failed = self._line.finish()
        if failed:
            sys.exit(2)


def _require(package: str) -> None:
    if package not in EXTRAS:
        return
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        sys.exit(f"this launcher needs {package}: {pip_install(EXTRAS[package])}")


class ProgressLine:
    """Counts outcomes on a thread: a live line on a terminal, elsewhere a line for every run that ends."""

    def __init__(self, sweep: Sweep, name: str, total: int) -> None:
        self._sweep, self._name, self._total = sweep, name, total
        self._start, self._stop = time.monotonic(), Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self._seen = -1
        self._alive = FileLock(sweep.folder / ".alive")

    def start(self) -> None:
        """Begin to count."""
        from tqdm import tqdm  # late: launchers silence the bars of their workers through tqdm's environment variables

        _sweep_up(self._sweep.folder.parent)
        self._sweep.folder.mkdir(parents=True, exist_ok=True)
        self._alive.acquire(timeout=0)
        live = sys.stderr.isatty()
        self._bar = tqdm(total=self._total, bar_format="{desc}", dynamic_ncols=True, disable=not live)
        self._thread.start()

    def finish(self) -> int:
        """Stop, name what failed, and return how many runs did."""
        self._stop.set()
        self._thread.join()
        outcomes = self._show()
        self._bar.close()
        self._alive.release()
        shutil.rmtree(self._sweep.folder, ignore_errors=True)
        common = set.intersection(*(set(one.overrides) for one in outcomes)) if len(outcomes) > 1 else set()
        for outcome in outcomes:
            distinct = " ".join(one for one in outcome.overrides if one not in common)
            for label, message in outcome.failed.items():
                _say(f"failed: {label} ({distinct}): {message}")
        lost = self._total - len(outcomes)
        if lost:
            _say(f"{lost} runs ended without a word: run the same command again")
        return lost + sum(bool(one.failed) for one in outcomes)

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_S):
            self._show()

    def _show(self) -> list[Outcome]:
        outcomes = self._sweep.outcomes()
        line = progress(self._name, self._total, outcomes, time.monotonic() - self._start)
        self._bar.set_description_str(line)
        if len(outcomes) != self._seen and self._bar.disable:
            _say(line)
        self._seen = len(outcomes)
        return outcomes


def _sweep_up(output: Path) -> None:
    """Remove the folders of sweeps that were killed: nobody holds their lock."""
    for folder in output.glob(f"{_FOLDER}*"):
        try:
            with FileLock(folder / ".alive", timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError):
            continue  # a sweep that runs beside this one


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
