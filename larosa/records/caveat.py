"""Whether a record's decode times are a speed measurement."""

from __future__ import annotations

from typing import Any


def caveat_of(speed: dict[str, Any]) -> str | None:
    """Why the times under a record's `speed` are no speed measurement; None if the kernels ran on a GPU.

    Records from before there was a caveat tell it by their backend.
    """
    if "caveat" in speed:
        return None if speed["caveat"] is None else str(speed["caveat"])
    return "torch reference, not a speed measurement" if speed.get("backend", "triton") != "triton" else None
