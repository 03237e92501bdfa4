"""Write a sparse model to a folder that `larosa.load(FOLDER)` loads without calibration.

    larosa export model=smollm2-135m method=larosa sparsity=0.4 output=FOLDER [export.weights=copy] [force=true]

Settings are those of a run. The model is calibrated, made sparse, proved at level 0 and quantised as a run does it;
nothing is measured. The card of the folder quotes the records of the same run in `export.records`, if there are any.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from larosa.cli.command import arguments, calibration_only, fail, read_settings
from larosa.config.run import ConfigError, RunConfig
from larosa.errors import LarosaError

log = logging.getLogger(__name__)


def export(config: RunConfig) -> Path:
    """Write the export of a run's own method to `output`. Raises LarosaError."""
    from larosa.experiment.export import export_run  # heavy imports wait until the settings are known to be good

    return export_run(config, calibration_only(config))


def settings(words: list[str]) -> RunConfig:
    """The run that the overrides describe. Raises ConfigError where they name no folder."""
    if not any(word.lstrip("+").startswith("output=") for word in words):
        raise ConfigError("output=FOLDER is needed: the folder that the export is written to")
    return read_settings(words)


def main() -> None:
    """Overrides as run.py takes them."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s %(levelname)s] %(message)s", datefmt="%H:%M:%S")
    words = arguments("export")
    try:
        folder = export(settings(words))
        log.info('wrote %s: larosa.load("%s") loads it', folder, folder)
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing was exported")
    except (LarosaError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    main()
