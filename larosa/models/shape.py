"""`model.shape` and a model's own configuration: the one from the other, and the two compared."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from larosa.errors import LarosaError
from larosa.models.architecture import ArchitectureError, architecture

STRUCTURE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
"""Fields in which `model.shape` and the weights' own config.json must agree; the rest is theirs to say.

`tie_word_embeddings` is theirs: a GGUF file may hold the head apart from the embedding of a model that is tied on the
hub."""
_UNSHAPING = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")


class ModelError(LarosaError):
    """The model cannot be had, does not fit, or is not what the configuration says."""


def from_shape(shape: Mapping[str, Any]) -> PretrainedConfig:
    """The transformers configuration that `model.shape` states. Raises ModelError where it states none."""
    try:
        return AutoConfig.for_model(**copy.deepcopy(dict(shape)))
    except Exception as error:  # transformers checks values with errors of its own
        raise ModelError(f"model.shape is no transformers configuration: {error}") from error


def described(config: PretrainedConfig) -> dict[str, Any]:
    """A transformers configuration as `model.shape` states it: without what every configuration has in common."""
    common = PretrainedConfig().to_dict()
    differing = {key: value for key, value in config.to_dict().items() if key not in common or common[key] != value}
    return {key: value for key, value in differing.items() if key not in _UNSHAPING} | {"model_type": config.model_type}


def require_known(source: object, model_type: object) -> None:
    """Raise before transformers makes a configuration of it, and long before weights are read."""
    if not isinstance(model_type, str):
        raise ModelError(f"the config.json of {source} names no model_type: it is no transformers configuration")
    try:
        architecture(model_type)
    except ArchitectureError as error:
        raise ArchitectureError(f"{source}: {error}") from None


def require_same(
    source: object, shape: Mapping[str, Any], actual: PretrainedConfig, fields: Sequence[str] = STRUCTURE
) -> None:
    """Raise ModelError where the model at `source` is not the one that `shape` describes."""
    expected = from_shape(shape)
    pairs = [(field, getattr(actual, field, None), getattr(expected, field, None)) for field in fields]
    different = [f"{field} is {theirs}, model.shape says {ours}" for field, theirs, ours in pairs if theirs != ours]
    if different:
        raise ModelError(
            f"{source} is not the model that model.shape describes: {'; '.join(different)}. A model that is not "
            f"in conf/model is model=local model.path={source}, or model=hub model.hub_id=ORGANISATION/NAME"
        )
