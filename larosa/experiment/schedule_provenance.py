"""Who made a schedule file: its `made_by` block, written by the commands that find schedules and checked by runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from larosa import models
from larosa.config.run import RunConfig
from larosa.data.tokens import TokenBlock
from larosa.experiment.provenance import git_state
from larosa.experiment.results import text_identity
from larosa.sparsity.schedule_file import read_made_by


def made_by(command: str, config: RunConfig, tokens_sha256: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What a schedule was found with. `settings`: those of the search itself."""
    calibration = config.calibration
    return {
        "command": command,
        "commit": git_state()["commit"],
        "model": {"name": config.model.name, "dtype": config.model.dtype, **models.fingerprint(config.model)},
        "method": config.method.label,
        "sparsity": config.sparsity,
        "seed": config.seed,
        "text": text_identity(calibration.text),
        "tokens_sha256": tokens_sha256,
        "tokens": calibration.probe_sequences * calibration.length,
        **settings,
    }


def schedule_warnings(config: RunConfig, texts: dict[str, TokenBlock]) -> list[str]:
    """What speaks against the run's schedule file: found on another model of this shape, or on a text of the run."""
    if config.schedule.kind != "file":
        return []
    path = Path(str(config.schedule.path)).expanduser()
    made, warnings = read_made_by(path), []
    name = dict(made.get("model") or {}).get("name", config.model.name)
    if name != config.model.name:
        warnings.append(f"schedule file {path} was made for {name}, not for {config.model.name}")
    for text, block in texts.items():
        same_text = made.get("text") == text_identity(config.texts[text])
        if same_text or made.get("tokens_sha256") == block.sha256:
            warnings.append(f"schedule file {path} was found on {text}: its perplexity there is no evaluation")
    return warnings
