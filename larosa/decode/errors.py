"""What the decoder refuses."""

from __future__ import annotations

from larosa.errors import LarosaError


class DecodeError(LarosaError):
    """The decoder cannot run this model, plan or prompt."""


class ParityError(LarosaError):
    """The decoder does not compute what the evaluated model computes, so its time means nothing."""
