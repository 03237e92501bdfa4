"""The schema of `model.shape`: a transformers configuration whose numbers a decoder can be built from.

A part of :mod:`larosa.config`. transformers knows more keys than stand here, and they are let through.
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

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    rope_theta: Positive | None = None
    factor: Positive | None = None


class ShapeConfig(BaseModel):
    """What is known of the keys; one that is not given is transformers' default."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model_type: str
    hidden_size: Size | None = None
    intermediate_size: Size | None = None
    num_hidden_layers: Size | None = None
    num_attention_heads: Size | None = None
    num_key_value_heads: Size | None = None
    head_dim: Size | None = None
    vocab_size: Size | None = None
    max_position_embeddings: Size | None = None
    hidden_act: str | None = None
    rms_norm_eps: Positive | None = None
    initializer_range: Positive | None = None
    rope_parameters: RopeConfig | None = None
    bos_token_id: Token | None = None
    eos_token_id: Token | tuple[Token, ...] | None = None
    pad_token_id: Token | None = None

    @model_validator(mode="after")
    def _possible(self) -> ShapeConfig:
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if heads and groups and heads % groups:
            raise ValueError(f"num_attention_heads={heads} must be a multiple of num_key_value_heads={groups}")
        if heads and self.hidden_size and self.head_dim is None and self.hidden_size % heads:
            raise ValueError(f"without head_dim, hidden_size={self.hidden_size} must be a multiple of {heads} heads")
        if self.head_dim and self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary embeddings turn pairs of channels")
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
    """Of a plain dict: validated as a ShapeConfig, kept as it is, for its hash is a part of a model's identity."""

    section = ShapeConfig

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        def kept(given: Any, check: core_schema.ValidatorFunctionWrapHandler) -> Any:
            check(given)
            return given

        known = handler.generate_schema(ShapeConfig)
        return core_schema.chain_schema([core_schema.no_info_wrap_validator_function(kept, known), handler(source)])


Shape = Annotated[dict[str, Any], _AsGiven()]
"""A transformers configuration as a plain dict."""
