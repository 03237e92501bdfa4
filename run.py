"""Run one experiment: `python run.py model=llama2-7b sparsity=0.4`; `python run.py --help` lists the settings."""

from __future__ import annotations

import logging
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from larosa.errors import LarosaError


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(settings: DictConfig) -> None:
    """Check the settings, run, and end with one readable message where something is wrong."""
    from larosa.config import ConfigError, RunConfig

    try:
        try:
            tree = OmegaConf.to_container(settings, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise ConfigError(str(error)) from None
        config = RunConfig.parse(tree)  # type: ignore[arg-type]
        from larosa.pipeline import run  # heavy imports wait until the settings are known to be good

        run(config)
    except (LarosaError, OSError) as error:
        logging.getLogger("larosa").error("%s", error)
        if HydraConfig.get().mode is not RunMode.MULTIRUN:  # the other cells of a sweep go on
            sys.exit(2)


if __name__ == "__main__":
    main()
