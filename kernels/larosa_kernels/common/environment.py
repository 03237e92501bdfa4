"""Where and by what code a benchmark ran: GPU, driver, versions, date, commit. Needs torch and nothing else."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "triton", "transformers", "numpy")


def environment(device: torch.device) -> dict[str, Any]:
    """Of this process and of this code; None where it cannot be told."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu, {platform.machine()}",
        "driver": _ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if on_gpu else None,
        "cuda": torch.version.cuda,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **git_state(Path(__file__)),
    }


def git_state(source: Path) -> dict[str, Any]:
    """Commit of the code that the file `source` belongs to, and whether tracked files differ from it.

    The repository around a package that is only installed in it says nothing: its commit counts only where it tracks
    `source`. LAROSA_COMMIT states the commit of a copy without history.
    """
    if stated := os.environ.get("LAROSA_COMMIT"):
        return {"commit": stated, "dirty": None}
    git = ("git", "-C", str(source.resolve().parent))
    if _ask(*git, "ls-files", "--error-unmatch", "--", str(source.resolve())) is None:
        return {"commit": None, "dirty": None}
    changes = _ask(*git, "status", "--porcelain", "--untracked-files=no")
    return {"commit": _ask(*git, "rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def _ask(*words: str) -> str | None:
    """What a command prints; None where there is no such command, or it fails."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # as a hook has them
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, env=ours)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
