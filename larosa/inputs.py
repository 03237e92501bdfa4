"""What can be given to a model: token ids of its vocabulary, at positions that it knows."""

from __future__ import annotations

from torch import Tensor
from transformers import PretrainedConfig

from larosa.errors import LarosaError


class InputError(LarosaError):
    """A model was given what it cannot read."""


def longest_sequence(config: PretrainedConfig) -> int:
    """Positions that the model reads: `max_position_embeddings`, or more where RoPE scaling extends it."""
    known, rope = int(config.max_position_embeddings), getattr(config, "rope_parameters", None) or {}
    original = rope.get("original_max_position_embeddings") or known
    return max(known, int(original * (rope.get("factor") or 1.0)))


def check_ids(ids: Tensor, config: PretrainedConfig, offset: int = 0) -> None:
    """Raise InputError where ids [..., T] are no ids of the vocabulary, or end beyond the model's positions.

    `offset`: tokens in the KV cache before them.
    """
    if ids.is_floating_point() or ids.is_complex() or ids.dtype.itemsize < 4:
        raise InputError(f"token ids are int64 or int32, got {ids.dtype}")
    outside = (ids < 0) | (ids >= config.vocab_size)
    if bool(outside.any()):
        raise InputError(
            f"token id {int(ids[outside][0])} is outside the vocabulary of {config.vocab_size}: tokenise the text with "
            "the model's own tokenizer"
        )
    length, longest = offset + ids.shape[-1], longest_sequence(config)
    if length > longest:
        raise InputError(f"a sequence of {length} tokens, but the model reads at most {longest} positions: shorten it")
