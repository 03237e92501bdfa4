"""The schema of `model.shape`: a transformers configuration that is enough to build the decoder.

A part of :mod:`larosa.config.run`. Keys of transformers that are not listed here pass unchecked.
"""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import core_schema

Size = Annotated[int, Field(ge=1, strict=True)]
Positive = Annotated[float, Field(gt=0.0)]
Token = Annotated[int, Field(ge=0, strict=True)]


class RopeConfig(BaseModel):
    """Rotary position embeddings."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, use_attribute_docstrings=True)

    rope_theta: Positive | None = None
    """Base of the frequencies."""
    factor: Positive | None = None
    """Scaling factor of long contexts."""


class ShapeConfig(BaseModel):
    """A transformers configuration. A key that is not given has the default of transformers."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, use_attribute_docstrings=True)

    model_type: str
    """A row of the table in larosa/models/architecture.py: `llama`, `mistral`, `qwen2`, `qwen3`, ..."""
    hidden_size: Size | None = None
    """Width D of the residual stream."""
    intermediate_size: Size | None = None
    """Width of the MLP."""
    num_hidden_layers: Size | None = None
    """Layers."""
    num_attention_heads: Size | None = None
    """Query heads."""
    num_key_value_heads: Size | None = None
    """Key and value heads."""
    head_dim: Size | None = None
    """Width of a head; null: hidden_size / num_attention_heads."""
    vocab_size: Size | None = None
    """Rows of the embedding."""
    max_position_embeddings: Size | None = None
    """Longest sequence."""
    hidden_act: str | None = None
    """Activation of the MLP's gate."""
    rms_norm_eps: Positive | None = None
    """Epsilon of the RMSNorms."""
    initializer_range: Positive | None = None
    """Standard deviation of random weights."""
    rope_parameters: RopeConfig | None = None
    """Rotary position embeddings."""
    bos_token_id: Token | None = None
    """Token id that begins a sequence."""
    eos_token_id: Token | tuple[Token, ...] | None = None
    """Token ids that end a sequence."""
    pad_token_id: Token | None = None
    """Token id of padding."""

    @model_validator(mode="after")
    def _possible(self) -> ShapeConfig:
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if heads and groups and heads % groups:
            raise ValueError(f"num_attention_heads={heads} must be a multiple of num_key_value_heads={groups}")
        if heads and self.hidden_size and self.head_dim is None and self.hidden_size % heads:
            raise ValueError(f"without head_dim, hidden_size={self.hidden_size} must be a multiple of {heads} heads")
        if self.head_dim and self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary embeddings rotate pairs of channels")
        ends = self.eos_token_id if isinstance(self.eos_token_id, tuple) else (self.eos_token_id,)
        for token in (self.bos_token_id, self.pad_token_id, *ends):
            if token is not None and self.vocab_size is not None and token >= self.vocab_size:
                raise ValueError(f"token id {token} is not below vocab_size={self.vocab_size}")
        for key in self.model_extra or {}:
            if meant := get_close_matches(key, type(self).model_fields, 1, 0.85):
                raise ValueError(f"unknown key {key}; did you mean {meant[0]}?")
        endless = [key for key, value in (self.model_extra or {}).items() if not _finite(value)]
        if endless:
            raise ValueError(f"{', '.join(endless)}: expected finite numbers")
        return self


def _finite(value: Any) -> bool:
    if isinstance(value, dict | list | tuple):
        return all(_finite(one) for one in (value.values() if isinstance(value, dict) else value))
    return not isinstance(value, float) or math.isfinite(value)


class _AsGiven:
    """Validates a plain dict as a ShapeConfig and keeps the dict, because its hash is part of a model's identity."""

    section = ShapeConfig

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def kept(given: Any, check: core_schema.ValidatorFunctionWrapHandler) -> Any:
            if given is not None:
                check(given)
            return given

        known = handler.generate_schema(ShapeConfig)
        return core_schema.chain_schema([core_schema.no_info_wrap_validator_function(kept, known), handler(source)])


Shape = Annotated[dict[str, Any] | None, _AsGiven()]
"""A transformers configuration as a plain dict; None: what the weights' own config.json says."""
