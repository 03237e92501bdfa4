"""The dense model of an export: by reference, where it came from, or as a copy in the folder's `dense/`.

Either is compared with the exported one before it is made sparse: configuration first, then a hash of all parameters.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from larosa import models
from larosa.config.base import Seed, Strict
from larosa.config.run import ModelConfig
from larosa.errors import LarosaError
from larosa.exports.errors import ExportError
from larosa.exports.folder import DENSE, check_free
from larosa.models import checkpoint
from larosa.models.architecture import ModelView
from larosa.sparsity.handle import SparsityHandle

_VOLATILE = (
    "_name_or_path", "architectures", "bos_token_id", "dtype", "eos_token_id", "id2label", "label2id",
    "output_attentions", "output_hidden_states", "pad_token_id", "return_dict", "torch_dtype", "transformers_version",
    "use_cache",
)  # fmt: skip
"""Fields of a configuration that do not change the model's logits."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


class BaseFile(Strict):
    """Which dense model an export is of."""

    weights: Literal["reference", "copy"]
    """Whether it is in the export's folder."""
    model: ModelConfig
    """Where it came from."""
    seed: Seed
    """Of random weights."""
    fingerprint: dict[str, Any] | None
    """models.fingerprint of a reference, when it was exported."""
    sha256: str
    """Of names, dtypes, shapes and bytes of all parameters, as loaded."""
    config: dict[str, Any]
    """The transformers configuration."""
    attention: str
    """The implementation of attention, in transformers' words."""
    vocabulary_sha256: str | None
    """Of the tokenizer's tokens and ids; None where the exporter had no tokenizer."""


def base_of(
    model: PreTrainedModel,
    handle: SparsityHandle,
    settings: ModelConfig,
    seed: int,
    weights: Literal["reference", "copy"],
    tokenizer: PreTrainedTokenizerBase | None,
) -> BaseFile:
    """The dense model behind a sparse one, which was loaded from `settings`. Raises LarosaError."""
    if model.dtype == torch.float64 and not isinstance(ModelView(model).final_norm, nn.RMSNorm):
        raise ExportError(
            "transformers' norms of a float64 model compute in float32, and loading replaces them: call "
            "larosa.models.precision.keep_float64(model) before larosa.sparsify"
        )
    fingerprint = models.fingerprint(settings) if weights == "reference" else None
    if settings.source == "local":
        settings = settings.model_copy(update={"shape": None})  # its own config.json, compared below, says it
    if settings.path is not None and weights == "reference":
        settings = settings.model_copy(update={"path": str(Path(settings.path).expanduser().absolute())})
    elif settings.path is not None:  # a copy does not say where on this machine it was made from
        settings = settings.model_copy(update={"path": DENSE if settings.source == "local" else None})
    elif fingerprint and settings.source == "hub":
        settings = settings.model_copy(update={"revision": fingerprint["revision"]})
    return BaseFile(
        weights=weights,
        model=settings,
        seed=seed,
        fingerprint=fingerprint,
        sha256=weights_sha256(handle.dense_weights()),
        config=plain(_dense_config(model, handle)),
        attention=str(model.config._attn_implementation),
        vocabulary_sha256=None if tokenizer is None else vocabulary_sha256(tokenizer),
    )


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """One hash of names, dtypes, shapes and bytes."""
    sha256 = hashlib.sha256()
    for name, tensor in tqdm(sorted(weights.items()), desc="hash of the dense model", unit="tensor", leave=False):
        sha256.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        content: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        sha256.update(content)
    return sha256.hexdigest()


def vocabulary_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all tokens and ids."""
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def plain(config: PretrainedConfig) -> dict[str, Any]:
    """A transformers configuration as JSON, without what does not change logits."""
    tree: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in tree.items() if key not in _VOLATILE}


def config_of(base: BaseFile) -> PretrainedConfig:
    """The dense model's configuration, without its weights. Raises ExportError."""
    try:
        return AutoConfig.for_model(**copy.deepcopy(base.config))
    except Exception as error:  # transformers checks values with errors of its own
        raise ExportError(f"the export's model configuration is not read by this transformers: {error}") from error


def copy_into(folder: Path, model: PreTrainedModel, handle: SparsityHandle, tokenizer: PreTrainedTokenizerBase) -> None:
    """Save the dense model and its tokenizer in transformers' layout, while the model is sparse. Raises ExportError."""
    weights = handle.dense_weights()
    check_free(folder, sum(tensor.nbytes for tensor in weights.values()))
    with torch.device("meta"):
        auto: Any = AutoModelForCausalLM
        dense = auto.from_config(_dense_config(model, handle), dtype=model.dtype)
    dense.load_state_dict(weights, assign=True)
    dense.tie_weights()
    if model.generation_config is not None:
        dense.generation_config = copy.deepcopy(model.generation_config)
    try:
        dense.save_pretrained(folder / DENSE, max_shard_size="1GB")  # its progress bar counts them
        tokenizer.save_pretrained(folder / DENSE)
    except ValueError as error:  # a generation configuration that transformers does not save
        raise ExportError(f"transformers does not save this model: {error}") from error
    if problem := checkpoint.problem(folder / DENSE):
        raise ExportError(f"the copy of the dense model could not be loaded again: {problem}")


def _dense_config(model: PreTrainedModel, handle: SparsityHandle) -> PretrainedConfig:
    config: PretrainedConfig = copy.deepcopy(model.config)
    config.tie_word_embeddings = handle.tied
    return config


def settings_of(
    base: BaseFile, folder: Path, device: str, device_map: str | None = None, other: Path | str | None = None
) -> ModelConfig:
    """How the dense model of the export in `folder` is loaded; `other`: a folder that has it. Raises ExportError."""
    changes: dict[str, Any] = {"device": device, "device_map": device_map}
    held_here = {"source": "local", "shape": None, "hub_id": None, "revision": None}
    if base.weights == "copy":
        if other is not None:
            raise ExportError(f"{folder} has its dense model in it: leave out base={other}")
        changes |= {**held_here, "path": str(folder / DENSE)}
    elif other is not None:
        changes |= {**held_here, "path": str(other)}
    return base.model.model_copy(update=changes)


def loaded(base: BaseFile, folder: Path, settings: ModelConfig) -> PreTrainedModel:
    """The dense model, proved to be the exported one. Raises ExportError where it is not there or another one."""
    where = settings.path or settings.hub_id or settings.name
    if settings.path is not None and (Path(settings.path) / "config.json").is_file():
        _require_same(base, folder, _config_at(settings.path), where)
    try:
        model = models.load_model(settings, base.seed)
    except LarosaError as error:
        raise _other(base, folder, where, f"cannot be loaded: {error}") from error
    _require_same(base, folder, model.config, where)
    if weights_sha256(dict(model.named_parameters(remove_duplicate=False))) != base.sha256:
        raise _other(base, folder, where, "is another one: its weights have another hash")
    if model.config._attn_implementation != base.attention:
        model.set_attn_implementation(base.attention)
    return model


def _config_at(path: str) -> PretrainedConfig | None:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception:  # transformers checks values with errors of its own; loading says what is wrong
        return None
    return config


def _require_same(base: BaseFile, folder: Path, config: PretrainedConfig | None, where: str) -> None:
    """Compare the fields that both have: other versions of transformers have others."""
    there = {} if config is None else plain(config)
    different = sorted(key for key in base.config.keys() & there.keys() if base.config[key] != there[key])
    if different:
        named = ", ".join(f"{key} is {there[key]}, expected {base.config[key]}" for key in different[:3])
        raise _other(base, folder, where, f"is another one: {named}")


def _other(base: BaseFile, folder: Path, where: str, reason: str) -> ExportError:
    if base.weights == "copy":
        return ExportError(f"the dense model in {where} {reason}. Copy or export {folder} again")
    return ExportError(
        f"the dense model of the export {folder}, looked for at {where}, {reason}. Expected {_described(base)}; "
        "larosa.load(FOLDER, base=PATH) names a folder that holds it"
    )


def _described(base: BaseFile) -> str:
    """The dense model in words."""
    model = base.model
    if model.path is not None:
        return f"what {model.path} held when it was exported"
    if model.source == "hub":
        return f"{model.hub_id} of the hub, revision {model.revision or 'main'}"
    return f"model={model.name}" + (f" with seed={base.seed}" if model.source == "random" else "")


def origin_of(model: PreTrainedModel) -> ModelConfig | None:
    """Where a model in memory says that it was loaded from; None where it does not say."""
    name = str(model.config.name_or_path or "")
    if Path(name).is_dir() and name:
        return _settings(model, Path(name).name, source="local", path=str(Path(name).absolute()))
    if not _HUB_ID.fullmatch(name):
        return None
    revision = getattr(model.config, "_commit_hash", None)
    return _settings(model, name.rpartition("/")[2], source="hub", hub_id=name, revision=revision)


def unknown_origin(model: PreTrainedModel) -> ModelConfig:
    """The settings of a model that only an export's own copy holds."""
    return _settings(model, str(model.config.model_type), source="local", path=DENSE)


def _settings(model: PreTrainedModel, name: str, **more: Any) -> ModelConfig:
    fixed = {"device": "auto", "device_map": None, "dense_weights_device": "device"}
    unknown = dict.fromkeys(("hub_id", "revision", "path", "shape"))
    dtype = str(model.dtype).removeprefix("torch.")
    return ModelConfig.model_validate({**unknown, **fixed, "name": name, "dtype": dtype, **more})
