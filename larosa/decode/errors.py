"""What the decoder refuses."""

from __future__ import annotations

from larosa.errors import LarosaError


class DecodeError(LarosaError):
    """The decoder cannot run this model, plan or prompt."""
