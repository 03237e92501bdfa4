"""The one error of exports."""

from __future__ import annotations

from larosa.errors import LarosaError


class ExportError(LarosaError):
    """A model cannot be exported to this folder, or the folder is not an export that can be loaded here."""
