"""The commit of larosa's own code, where it can be told. Nothing here needs more than Python and git."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from larosa_kernels.common import commit


def git_state() -> dict[str, Any]:
    """Commit of larosa's code, and whether its tracked files differ from it; None where that cannot be told.

    LAROSA_COMMIT states the commit of a copy without history.
    """
    return commit.git_state(Path(__file__), Path(__file__).resolve().parents[2])
