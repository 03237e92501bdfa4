"""The commit of some code, where it can be told. Needs Python and git, nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any


def git_state(source: Path, folder: Path) -> dict[str, Any]:
    """Commit of the code that the file `source` belongs to, and whether tracked files of `folder` differ from it.

    None where it cannot be told. The repository around a package that is only installed in it says nothing: its commit
    counts only where it tracks `source`. LAROSA_COMMIT states the commit of a copy without history.
    """
    if stated := os.environ.get("LAROSA_COMMIT"):
        return {"commit": stated, "dirty": None}
    git = ("git", "-C", str(folder))
    if answer(*git, "ls-files", "--error-unmatch", "--", str(source.resolve())) is None:
        return {"commit": None, "dirty": None}
    changes = answer(*git, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return {"commit": answer(*git, "rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def answer(*words: str) -> str | None:
    """What a command prints; None where there is no such command, or it fails."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # as a hook has them
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, env=ours)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
