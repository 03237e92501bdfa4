"""What the commands beside `run.py` share: settings read as it reads them, and a bench without evaluation texts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from larosa.config import ConfigError, RunConfig
from larosa.errors import LarosaError

log = logging.getLogger(__name__)


def main(run: Callable[[RunConfig], Path]) -> None:
    """Read the settings, run, say what was written; one readable message where something is wrong."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s %(levelname)s] %(message)s", datefmt="%H:%M:%S")
    try:
        log.info("wrote %s", run(read_settings(sys.argv[1:])))
    except (LarosaError, OSError) as error:
        log.error("%s", error)
        sys.exit(2)


def read_settings(overrides: list[str]) -> RunConfig:
    """The settings that `run.py` would have with these overrides. Raises ConfigError."""
    conf = Path(__file__).resolve().parent.parent / "conf"
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            tree = OmegaConf.to_container(compose("config", overrides), resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error)) from None
    return RunConfig.parse(tree)  # type: ignore[arg-type]


def calibration_only(config: RunConfig) -> RunConfig:
    """The same run without baselines, evaluation texts and tasks: a schedule is found on calibration tokens alone."""
    tasks = config.evaluation.zero_shot.model_copy(update={"tasks": ()})
    evaluation = config.evaluation.model_copy(update={"zero_shot": tasks})
    return config.model_copy(update={"baseline": {}, "texts": {}, "evaluation": evaluation})
