"""The command line that measures a run again, as it is to be typed in the repository's root.

It holds everything that shapes the result: the folder and name of the settings that were composed, and the overrides.
Paths below the working directory are relative; an `output=` elsewhere on the machine is left out. Where larosa is
installed without its repository, `python -m larosa` takes the place of `python run.py`.
"""

from __future__ import annotations

import shlex
from typing import Any

from omegaconf import OmegaConf

from larosa.packaged import in_checkout, shortened


def command(hydra: Any, sweep: bool) -> str:
    """Of a run that Hydra composed. hydra: HydraConfig's settings; sweep: whether the run is one of a sweep."""
    words = ["python", "run.py"] if in_checkout() else ["python", "-m", "larosa"]
    folders = [shortened(one.path) for one in hydra.runtime.config_sources if one.provider == "command-line"]
    words += [word for folder in folders for word in ("--config-dir", folder)]
    if hydra.job.config_name != "config":
        words += ["--config-name", str(hydra.job.config_name)]
    words += ["-m"] if sweep else []
    words += OmegaConf.to_container(hydra.overrides.task, resolve=False)  # type: ignore[arg-type]
    near = [word.replace(f"{hydra.runtime.cwd}/", "") for word in words]
    return shlex.join(word for word in near if not _elsewhere(word))


def _elsewhere(word: str) -> bool:
    """Whether this override sends the records out of the working directory."""
    key, _, value = word.partition("=")
    return key == "output" and value.strip("'\"").startswith(("/", "~"))
