"""One run or one sweep: `larosa run model=llama2-7b sparsity=0.4`, or `python run.py ...` or `python -m larosa ...`.

`--help` lists the settings. This module reads the command line; :mod:`larosa.cli.launch` runs what it asks for.
"""

from __future__ import annotations

import argparse
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from larosa.cli.overrides import explained, fit
from larosa.commands import typed
from larosa.config import keys
from larosa.config.base import ConfigError
from larosa.errors import LarosaError, described
from larosa.records.packaged import locate, packaged

OmegaConf.register_new_resolver("command", typed, replace=True)  # in conf/config.yaml
_MODES = ("run", "multirun", "cfg", "info", "shell_completion")


@hydra.main(version_base="1.3", config_path=str(packaged("conf")), config_name="config")
def _run(settings: DictConfig) -> None:
    """Hand over to :mod:`larosa.cli.launch`, as a run of its own or of a sweep."""
    from larosa.cli import invocation, launch
    from larosa.cli.sweep import Sweep

    hydra_settings = HydraConfig.get()
    sweep = Sweep.of(hydra_settings)
    command = invocation.command(hydra_settings, sweep)
    if sweep is None:
        launch.alone(settings, command)
    else:
        overrides: list[str] = OmegaConf.to_container(hydra_settings.overrides.task, resolve=False)  # type: ignore[assignment]
        launch.in_sweep(sweep, settings, overrides, command)


def arranged(words: list[str]) -> list[str]:
    """The command line as Hydra takes it: flags in front, then overrides that its grammar reads. Raises ConfigError."""

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message} (`--hydra-help` lists the flags, `--help` the settings)")

    parser: argparse.ArgumentParser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    given = parser.parse_intermixed_args(words)
    modes = [name for name in _MODES if getattr(given, name)]
    if len(modes) > 1:
        refuse(f"--{' and --'.join(modes)} exclude each other".replace("_", "-"))
    flags = list(words)
    for word in given.overrides:
        flags.remove(word)
    if given.config_dir:
        folder = locate(os.path.expanduser(given.config_dir))
        place = max(i for i, word in enumerate(flags) if word.endswith(given.config_dir))
        flags[place] = flags[place].removesuffix(given.config_dir) + folder
        _check_name(folder, given.config_name)
    return [*flags, *fit(given.overrides, given.multirun)]


def _check_name(folder: str, name: str | None) -> None:
    """Whether the folder of settings has these. Raises ConfigError."""
    if not Path(folder).is_dir():
        raise ConfigError(f"--config-dir {folder}: no such folder; expected one of YAML files")
    known = sorted(path.stem for path in Path(folder).glob("*.yaml"))
    file = f"{(name or 'config').removesuffix('.yaml')}.yaml"
    if not any((at / file).is_file() for at in (Path(folder), packaged("conf"))):
        meant = keys.question(get_close_matches(str(name), known, 3))
        raise ConfigError(
            f"--config-name {name}: {folder} has no {name}.yaml{meant}; it has {', '.join(known) or 'none'}"
        )


def main() -> None:
    """Run the command line; a mistake ends in one message and status 2."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come to us, not to Hydra's own printer
    try:
        sys.argv[1:] = arranged(sys.argv[1:])
        _run()
    except KeyboardInterrupt:
        sys.exit("interrupted: what is recorded stays, and the same command goes on from there")
    except BrokenPipeError:  # `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (HydraException, OmegaConfBaseException) as error:
        _end(explained(error))
    except LarosaError as error:
        _end(str(error))
    except OSError as error:
        _end(described(error))


def _end(message: str) -> NoReturn:
    print(f"ERROR: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
