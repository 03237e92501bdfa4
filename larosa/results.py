"""Records: one `result.json` for every measured method, found again by its identity.

The identity is a hash of all that shapes the result: the model's fingerprint and precision, calibration,
schedule, method, texts, evaluation, seed, and larosa's version. It holds neither paths of outputs nor
tracking. Same identity, same numbers (on one kind of device); so a record that exists is returned, not
measured again. A record is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import tempfile
from pathlib import Path
from typing import Any

from larosa.config import MethodConfig, RunConfig, TextConfig
from larosa.errors import LarosaError
from larosa.store import digest, write_atomically

log = logging.getLogger(__name__)

SCHEMA = 1
MEANING = 1
"""Part of every identity: raise it when a change of the code changes what a result means."""

TUNING_VERSION = 2
"""The same for tuned bases and transforms alone. 1: steps saw a transform rounded before its columns were scaled."""

UNITS = {
    "level_*, *_share, byte_weighted_*": "fraction",
    "*_bytes, bytes": "bytes; per token where they are read",
    "flops_per_token": "floating-point operations, a multiply-add counts two",
    "wall_s": "seconds",
    "perplexity": "exp of nats a predicted token; its standard error in the same unit",
    "block_nll_nats": "nats, summed over a block",
    "thresholds": "magnitude of the activation in the site's basis",
    "site_error, layer_error, relative_logits_error, bound": "relative, Euclidean norm",
    "ms_per_token": "milliseconds of one decode step, batch 1",
    "tokens_per_s, read_bytes_per_s": "a second",
    "zero_shot value, standard_error": "fraction right",
}

Record = dict[str, Any]


class RecordError(LarosaError):
    """A record cannot be written."""


def identity(config: RunConfig, fingerprint: dict[str, str], device: str) -> dict[str, Any]:
    """What shapes the result of `config.method`; the dense model's does not depend on level or calibration."""
    shaping: dict[str, Any] = {
        "schema": SCHEMA,
        "meaning": MEANING,
        "model": {"name": config.model.name, "dtype": config.model.dtype, "device": device, **fingerprint},
        "method": _method_identity(config.method),
        "texts": {name: text_identity(text) for name, text in config.texts.items()},
        "evaluation": _evaluation_identity(config),
        "seed": config.seed,
    }
    if config.quantization.active:  # a run without is what it was before there was any
        shaping["quantization"] = _quantization_identity(config)
    if avoided := left_out_by(config):
        shaping["left_out_by"] = avoided
    if config.method.name != "dense":
        shaping |= {
            "sparsity": config.sparsity,
            "schedule": config.schedule.model_dump(mode="json", exclude={"path"}),
            "schedule_file": _file_hash(config.schedule.path),
            "tokens": config.tokens.model_dump(mode="json"),
            "calibration": _calibration_identity(config),
        }
    return shaping


def _quantization_identity(config: RunConfig) -> dict[str, Any]:
    """What is rounded, without what is not used, and the tokens where a quantiser reads them."""
    own = config.quantization.model_dump(mode="json")
    if config.quantization.weights != "w4":
        del own["groups"]
        if not config.quantization.calibrated:
            del own["quantizer"]
    if config.quantization.calibrated:
        own["calibration"] = _calibration_identity(config)
    else:
        del own["sequences"]
    return {key: value for key, value in own.items() if value is not None}


def _calibration_identity(config: RunConfig) -> dict[str, Any]:
    own = config.calibration.model_dump(mode="json", exclude={"text"})
    return own | {"text": text_identity(config.calibration.text)}


def left_out_by(config: RunConfig) -> str | None:
    """Names the calibration text for whose passages examples are left out; None for runs without such tasks.

    Only BoolQ asks about the passages of a calibration text.
    """
    text = config.calibration.text
    if "boolq" not in config.evaluation.zero_shot.tasks or text.dataset != "boolq-passages":
        return None
    return digest(text_identity(text))


def _evaluation_identity(config: RunConfig) -> dict[str, Any]:
    """What is measured; a run without timing is what it was before there was timing. Where requests come from does
    not shape a score."""
    tasks = config.evaluation.zero_shot
    unused = {"requests"} | {name for name in ("max_new_tokens", "chat_template") if not getattr(tasks, name)}
    unshaping: dict[str, Any] = {"zero_shot": unused}
    if config.evaluation.perplexity.samples is None:
        unshaping["perplexity"] = {"samples"}
    if config.evaluation.speed is None:
        return config.evaluation.model_dump(mode="json", exclude=unshaping | {"speed": True})
    return config.evaluation.model_dump(mode="json", exclude=unshaping) | {"backend": config.backend}


def _method_identity(method: MethodConfig) -> dict[str, Any]:
    """The method's settings without its name in tables and without what it does not use."""
    own = method.model_dump(mode="json", exclude={"preset"})
    if method.granularity != "group":
        del own["group_size"]
    if method.rule == "threshold":
        del own["top_k"]
    elif method.top_k.rounding == "nearest":  # as before there was another rule
        del own["top_k"]["rounding"]
    if method.form != "explicit":
        del own["transform_storage"], own["block_size"]
    if method.tuning is None:
        del own["tuning"]
    else:
        own["tuning_version"] = TUNING_VERSION
    if method.form != "simulated":
        del own["rotation_dtype"]
    if method.name != "r_sparse":
        del own["rank_share"], own["rank_search"]
    return own


def text_identity(text: TextConfig) -> dict[str, Any]:
    """A text's settings, files of one's own by their content."""
    own = text.model_dump(mode="json", exclude={"files"})
    return own | {"files": [_file_hash(name) for name in text.files]}


def _file_hash(name: str | None) -> str | None:
    if name is None:
        return None
    try:
        return hashlib.sha256(Path(name).expanduser().read_bytes()).hexdigest()
    except OSError:
        return "unreadable"  # reading the file for real explains why


def record_folder(config: RunConfig, shaping: dict[str, Any]) -> Path:
    """`<output>/<model>-<method>-<level>-<identity>`."""
    level = "" if config.method.name == "dense" else f"-{config.sparsity:g}"
    name = f"{config.model.name}-{config.method.name}{level}-{digest(shaping)[:10]}"
    return Path(config.output).expanduser() / name


def slug(label: str) -> str:
    """A method's label as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def check_output(config: RunConfig) -> None:
    """Prove that the folder of the records can be written. Raises RecordError."""
    folder = Path(config.output).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"0" * 4096)
    except OSError as error:
        raise RecordError(
            f"the record folder {folder} cannot be written ({error.strerror or error}): free some space, or set "
            "output=FOLDER to a writable one"
        ) from error


def load_record(folder: Path, shaping: dict[str, Any]) -> Record | None:
    """The finished record of this identity, or None. A damaged one is named and ignored."""
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        record = read(path)
        if (record["schema"], record["identity"]) != (SCHEMA, digest(shaping)):
            raise ValueError("it belongs to another identity or schema")
        missing = {"metrics", "config", "data", "git", "stages"} - set(record)
        if missing:
            raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    except (ValueError, KeyError, TypeError, OSError) as error:
        log.warning("%s is damaged (%s): measured again", path, error)
        return None
    return record


def finite(tree: Any, path: str) -> None:
    """Raise RecordError that names the first number in a nested record that is NaN or infinite."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            finite(value, f"{path}.{key}")
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            finite(value, f"{path}[{i}]")
    elif isinstance(tree, float) and not math.isfinite(tree):
        raise RecordError(
            f"{path} is {tree}: the model overflowed. Check the weights and model.dtype (float16 overflows in some "
            "models: use bfloat16 or float32)"
        )


def read(path: Path) -> Record:
    """The record in a `result.json`."""
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    return record


def save_record(folder: Path, record: Record) -> Path:
    """Write `result.json` atomically. If the folder fails now, the record goes to the temporary folder.

    Raises RecordError that says where.
    """
    finite(record, "record")
    content = json.dumps(record, indent=1, allow_nan=False).encode()
    path = folder / "result.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        rescue = Path(tempfile.gettempdir()) / f"larosa-{record['identity']}.json"
        try:
            write_atomically(rescue, content)
            where = f"it was saved as {rescue}; move it to {path} to keep it"
        except OSError:
            where = "and neither could the temporary folder"
        raise RecordError(f"{path} cannot be written ({error}); {where}") from error
    return path
