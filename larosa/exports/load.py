"""Load an export: `larosa.load(FOLDER)` gives the sparse transformers model, without calibration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from larosa import models
from larosa.config.base import readable
from larosa.errors import ArgumentError, LarosaError
from larosa.exports import plan_file
from larosa.exports.base import config_of, loaded, settings_of, vocabulary_sha256
from larosa.exports.errors import ExportError
from larosa.exports.folder import PLAN, TENSORS, verify
from larosa.exports.write import ExportFile
from larosa.models.architecture import ModelView
from larosa.models.sites import ModelShape
from larosa.records.disk import read_object
from larosa.sparsity.handle import apply


def load(
    folder: str | os.PathLike[str],
    *,
    device: str = "auto",
    device_map: str | None = None,
    base: str | os.PathLike[str] | None = None,
    dense_weights_device: Literal["device", "cpu"] = "device",
) -> PreTrainedModel:
    """The sparse model of an export: the model of transformers' own class, in eval mode, with its handle.

    Its logits are those of the exporting run to the bit on the same machine. `larosa.handle_of(model)` is its handle.

    Args:
        folder: what `larosa export` or larosa.export wrote, wherever it is now.
        device: `auto` (a GPU if there is one), `cpu`, `cuda` or `cuda:N`.
        device_map: `auto`, `balanced`, ...: spread over the GPUs by accelerate; None: the whole model on `device`.
        base: a folder with the dense model, where an export that refers to one does not find it.
        dense_weights_device: where the dense weights wait for the handle's `remove()`: `device` or `cpu`.

    Raises ExportError: no export, damaged, of a newer format, or its dense model is not there or another one.
    """
    if dense_weights_device not in ("device", "cpu"):
        raise ArgumentError(f"dense_weights_device={dense_weights_device!r}: expected 'device' or 'cpu'")
    place = Path(folder).expanduser()
    file = read(place)
    config = config_of(file.base)
    shape = ModelShape.of(config)
    plan_file.check(file.plan, shape)
    dtype = getattr(torch, file.base.model.dtype)
    held = plan_file.read(place / TENSORS, plan_file.expected(file.plan, shape, dtype, config.vocab_size))
    model = loaded(file.base, place, settings_of(file.base, place, device, device_map, _path(base)))
    handle = apply(model, plan_file.plan_of(file.plan, shape, held), dense_weights_device)
    plan_file.restore_quantised(handle, ModelView(model), file.plan, held)
    return model


def load_tokenizer(
    folder: str | os.PathLike[str], *, base: str | os.PathLike[str] | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of an export's dense model. Arguments and errors as of :func:`load`."""
    place = Path(folder).expanduser()
    file = read(place)
    settings = settings_of(file.base, place, "auto", None, _path(base))
    try:
        tokenizer = models.load_tokenizer(settings)
    except LarosaError as error:
        raise ExportError(f"the tokenizer of the export {place} cannot be loaded: {error}") from error
    if file.base.vocabulary_sha256 not in (None, vocabulary_sha256(tokenizer)):
        raise ExportError(
            f"the tokenizer at {settings.path or settings.hub_id} is not that of the export {place}: its tokens are "
            "others. larosa.load_tokenizer(FOLDER, base=PATH) names another place"
        )
    return tokenizer


def read(folder: Path) -> ExportFile:
    """plan.json of an intact export. Raises ExportError."""
    verify(folder)
    try:
        return ExportFile.model_validate(read_object(folder / PLAN))
    except ValidationError as error:
        raise ExportError(f"{folder / PLAN} is not what this larosa reads: {readable(error, ExportFile)}") from None
    except (ValueError, OSError) as error:
        raise ExportError(f"{folder / PLAN} cannot be read: {error}") from error


def _path(base: str | os.PathLike[str] | None) -> Path | None:
    return None if base is None else Path(base).expanduser().absolute()
