"""What the commands beside `run` share: settings read as it reads them, and a session without evaluation texts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NoReturn

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from larosa.cli.overrides import explained, fit
from larosa.commands import COMMANDS, asks_for_help, help_of, typed
from larosa.config.run import ConfigError, RunConfig, ScheduleConfig
from larosa.errors import LarosaError, described
from larosa.methods.registry import METHODS
from larosa.models.resolve import resolved
from larosa.records.packaged import packaged

log = logging.getLogger(__name__)


def main(run: Callable[[RunConfig], Path]) -> None:
    """Read the settings, run, say what was written; one readable message where something is wrong."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s %(levelname)s] %(message)s", datefmt="%H:%M:%S")
    module = sys.modules[run.__module__].__spec__
    words = arguments(next(name for name, command in COMMANDS.items() if module and command.module == module.name))
    try:
        log.info("wrote %s", run(not_quantised(read_settings(words))))
    except (LarosaError, OSError) as error:
        fail(error)


def arguments(name: str) -> list[str]:
    """The words behind the command `name`; --help prints what its module says of itself and ends."""
    words = sys.argv[1:]
    if asks_for_help(words):
        print(help_of(name))
        sys.exit(0)
    return words


def not_quantised(config: RunConfig) -> RunConfig:
    """The settings of a command for unquantised weights. Raises ConfigError where they quantise."""
    if config.quantization.active:
        raise ConfigError(
            "this command does not quantise weights: take quantization=none "
            f"(`{typed('run')}` and `{typed('eval')}` do)"
        )
    return config


def fail(reason: object) -> NoReturn:
    """End with one message."""
    log.error("%s", described(reason) if isinstance(reason, OSError) else reason)
    sys.exit(2)


def read_settings(overrides: list[str]) -> RunConfig:
    """The settings that `run` would have with these overrides. Raises ConfigError and ModelError."""
    try:
        with initialize_config_dir(str(packaged("conf")), version_base="1.3"):
            tree = OmegaConf.to_container(compose("config", fit(overrides)), resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explained(error)) from None
    return resolved(RunConfig.parse(tree))  # type: ignore[arg-type]


def calibration_only(config: RunConfig) -> RunConfig:
    """The same run without baselines, evaluation texts and tasks: a schedule is found on calibration tokens alone."""
    tasks = config.evaluation.zero_shot.model_copy(update={"tasks": ()})
    evaluation = config.evaluation.model_copy(update={"zero_shot": tasks})
    return config.model_copy(update={"baseline": {}, "texts": {}, "evaluation": evaluation})


def schedule_destination(config: RunConfig) -> Path:
    """The file that a search writes. Raises ConfigError where the settings leave nothing to search for."""
    if not config.schedule.path:
        raise ConfigError("schedule.path=NAME says where the schedule goes: schedules/<model>/NAME.json, or a file")
    if config.schedule.kind == "file":
        raise ConfigError("schedule.path is written here, not read: leave out schedule=file")
    if config.sparsity == 0:
        raise ConfigError("sparsity=0 leaves nothing to allocate")
    if not METHODS[config.method.name].searched_schedules:
        searched = ", ".join(name for name, method in METHODS.items() if method.searched_schedules)
        raise ConfigError(f"schedules are searched for {searched}, not for {config.method.name}")
    return Path(config.schedule.path).expanduser()


def uniform(metric: Literal["weight_bytes", "nominal"]) -> ScheduleConfig:
    """The schedule of a search whose own levels are yet to be found."""
    return ScheduleConfig(name="uniform", kind="uniform", coefficients=None, table={}, path=None, metric=metric)
