"""Run one experiment: `python run.py model=llama2-7b sparsity=0.4`; `python run.py --help` lists the settings."""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(settings: DictConfig) -> None:
    """Hand over to :mod:`larosa.launch`, as a run of its own or of a sweep."""
    from larosa import invocation, launch
    from larosa.sweep import Sweep

    hydra_settings = HydraConfig.get()
    sweep = Sweep.of(hydra_settings)
    command = invocation.command(hydra_settings, sweep is not None)
    if sweep is None:
        launch.alone(settings, command)
    else:
        launch.in_sweep(sweep, settings, list(hydra_settings.overrides.task), command)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted: what is recorded stays, and the same command goes on from there")
