"""Write an export: `larosa.export(model, FOLDER)`, and the same of a run (:mod:`larosa.cli.export`)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from larosa.config.base import Strict
from larosa.config.run import CalibrationConfig
from larosa.errors import ArgumentError
from larosa.exports import plan_file
from larosa.exports.base import BaseFile, base_of, copy_into, loaded, origin_of, settings_of, unknown_origin
from larosa.exports.card import card
from larosa.exports.errors import ExportError
from larosa.exports.folder import PLAN, TENSORS, check_destination, check_free, written
from larosa.models.architecture import ModelView
from larosa.sparsity.handle import handle_of

CONFIG = {
    "model_type": "larosa",
    "architectures": ["LarosaForCausalLM"],
    "quantization_config": {"quant_method": "larosa"},
    "load_with": "pip install larosa; python: import larosa; model = larosa.load(FOLDER)",
}
"""config.json of an export: a kind of model, and a format of weights, that nothing but larosa knows."""


class ExportFile(Strict):
    """plan/plan.json."""

    plan: plan_file.PlanFile
    base: BaseFile
    calibration: CalibrationConfig | None
    """What a run calibrated on; None of a model that was made sparse from Python."""


def export(
    model: PreTrainedModel,
    folder: str | os.PathLike[str],
    *,
    weights: Literal["reference", "copy"] = "reference",
    tokenizer: PreTrainedTokenizerBase | None = None,
    force: bool = False,
) -> Path:
    """Write what makes `model` sparse to `folder`, which larosa.load makes a sparse model again without calibration.

    Args:
        model: a model that larosa.sparsify made sparse; it stays as it is.
        folder: a folder that is not there yet.
        weights: `reference` names where the dense model was loaded from, and loads it once to prove that it is the
            same; `copy` puts the dense weights into the folder, with the `tokenizer`.
        tokenizer: of the model; `weights="copy"` needs it, and a reference then knows a changed one.
        force: replace an export that is there.

    Returns the folder. Raises ExportError, HandleError where the model is dense or its dense weights were discarded.
    """
    target, handle = Path(folder).expanduser(), handle_of(model)
    if weights not in ("reference", "copy"):
        raise ArgumentError(f"weights={weights!r}: expected 'reference' or 'copy'")
    check_destination(target, force)
    origin = origin_of(model)
    if weights == "reference" and origin is None:
        raise ExportError(
            "the model does not say where it was loaded from: take weights='copy', which puts its dense weights into "
            "the folder"
        )
    base = base_of(model, handle, origin or unknown_origin(model), 0, weights, tokenizer)
    if weights == "reference":
        _prove(base, target)
    return write(target, model, base, tokenizer=tokenizer, force=force)


def _prove(base: BaseFile, folder: Path) -> None:
    """Load the dense model from where a reference says that it is. Raises ExportError where that is another one."""
    try:
        loaded(base, folder, settings_of(base, folder, "cpu"))
    except ExportError as error:
        raise ExportError(f"{error}\nOr take weights='copy', which puts the dense weights into the folder") from error


def write(
    folder: Path,
    model: PreTrainedModel,
    base: BaseFile,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    calibration: CalibrationConfig | None = None,
    measured: Sequence[tuple[str, str]] = (),
    force: bool = False,
) -> Path:
    """The export of a sparse model whose dense one is `base`. Raises ExportError.

    measured: rows of the card, a quantity and its value.
    """
    handle = handle_of(model)
    if base.weights == "copy" and tokenizer is None:
        raise ExportError("weights='copy' needs tokenizer=...: a copy is a model that needs nothing else")
    file = ExportFile(plan=plan_file.described(handle), base=base, calibration=calibration)
    plan_file.check(file.plan, handle.plan.shape)
    with written(folder, force) as scratch:
        _save(scratch, plan_file.tensors(handle, ModelView(model)))
        if base.weights == "copy" and tokenizer is not None:
            copy_into(scratch, model, handle, tokenizer)
        _dump(scratch / PLAN, file.model_dump(mode="json"))
        _dump(scratch / "config.json", CONFIG)
        (scratch / "README.md").write_text(card(handle.plan, base, file.plan.quantization, measured), encoding="utf-8")
    return folder


def _save(scratch: Path, tensors: dict[str, Tensor]) -> None:
    check_free(scratch, sum(tensor.nbytes for tensor in tensors.values()))
    path = scratch / TENSORS
    path.parent.mkdir()
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise ExportError(f"{path} cannot be written: {error}") from error


def _dump(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(json.dumps(tree, indent=1, allow_nan=False), encoding="utf-8")
