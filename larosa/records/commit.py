"""The commit of larosa's own code, where it can be told. Nothing here needs more than Python and git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any


def git_state() -> dict[str, Any]:
    """Commit of larosa's code, and whether its tracked files differ from it; None where that cannot be told.

    The repository around a package that is only installed in it says nothing about larosa: its commit counts only
    where it tracks this file. LAROSA_COMMIT states the commit of a copy without history.
    """
    if stated := os.environ.get("LAROSA_COMMIT"):
        return {"commit": stated, "dirty": None}
    if _git("ls-files", "--error-unmatch", "--", str(Path(__file__).resolve())) is None:
        return {"commit": None, "dirty": None}
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return {"commit": _git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def _git(*words: str) -> str | None:
    """What git answers where this code is; None without git, a repository, or an answer."""
    root = Path(__file__).resolve().parents[2]
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # of a hook, for one
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, env=own)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
