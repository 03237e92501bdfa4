"""The command line that measures a run again, as it is to be typed in the same folder.

It holds everything that shapes the result and its place: the folder and name of the settings that were composed, where
else they were searched for, and the overrides, `output=` among them. Paths below the working directory are relative.
Where the console command was started, or larosa is installed without its repository, it begins with `larosa run`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from larosa.cli.sweep import Sweep
from larosa.commands import typed
from larosa.records.packaged import shortened


def command(hydra: Any, sweep: Sweep | None) -> str:
    """Of a run that Hydra composed. hydra: HydraConfig's settings; sweep: the sweep that the run is one of."""
    words = (typed("run") if sweep is None else sweep.program).split()
    folders = [shortened(one.path) for one in hydra.runtime.config_sources if one.provider == "command-line"]
    words += [word for folder in folders for word in ("--config-dir", folder)]
    if hydra.job.config_name != "config":
        words += ["--config-name", str(hydra.job.config_name)]
    words += ["-m"] if sweep is not None else []
    words += [word for word in hydra.overrides.get("hydra") or () if word.startswith("hydra.searchpath=")]
    words += OmegaConf.to_container(hydra.overrides.task, resolve=False)  # type: ignore[arg-type]
    here = re.compile(rf"(?<![\w./~-]){re.escape(str(hydra.runtime.cwd).rstrip('/'))}/")  # at the beginning of a path
    return shlex.join(here.sub("", word) for word in words)


def run_command(overrides: Sequence[str]) -> str:
    """The same of a run with these overrides, started by another command than `run.py`."""
    return shlex.join([*typed("run").split(), *overrides])
