"""What can be given to a model (token ids of its vocabulary, at positions that it knows) and to a site (floats)."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig

from larosa.errors import ArgumentError, LarosaError


class InputError(LarosaError):
    """A model was given what it cannot read."""


class ActivationError(LarosaError, TypeError):
    """An activation is of a type that has no magnitudes to drop by."""


def check_floating(x: Tensor) -> None:
    """Raise ActivationError where x is of integers, booleans or complex numbers."""
    if not x.is_floating_point():
        raise ActivationError(f"an activation is a floating-point tensor, got {x.dtype}: convert it with .float()")


def described(given: object) -> str:
    """Shape and dtype of a tensor, the type of anything else."""
    return f"{list(given.shape)} {given.dtype}" if isinstance(given, Tensor) else type(given).__name__


def check_activations(given: object, width: int, device: torch.device | None = None) -> None:
    """Raise ArgumentError unless `given` is a tensor [..., width] (on `device`, if one is named), ActivationError where
    it is not floating."""
    if not isinstance(given, Tensor) or given.shape[-1:] != (width,):
        raise ArgumentError(f"expected floating activations of width {width}, [..., {width}], got {described(given)}")
    check_floating(given)
    if device is not None and given.device != device:
        raise ArgumentError(f"the activations are on {given.device}, the rotation is on {device}: move one of them")


def check_matrix(given: object, width: int | None = None) -> None:
    """Raise ArgumentError unless `given` is a floating matrix [width, width]; None: a square one."""
    square = isinstance(given, Tensor) and given.dim() == 2 and given.shape[0] == given.shape[1]
    if not isinstance(given, Tensor) or not square or not given.is_floating_point() or width not in (None, len(given)):
        size = "D" if width is None else width
        raise ArgumentError(f"expected a floating matrix [{size}, {size}], got {described(given)}")


def check_width(given: object) -> None:
    """Raise ArgumentError unless `given` is a number of channels."""
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise ArgumentError(f"a width is an integer number of channels, at least 1, got {given!r}")


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
