"""Where and by what code a benchmark ran: GPU, driver, versions, date, commit; and its record on disk."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from larosa.records.checksum import sealed
from larosa.records.commit import git_state

PACKAGES = ("torch", "triton", "transformers", "numpy")


def circumstances(device: torch.device) -> dict[str, Any]:
    """Of this process and of larosa's code; null where it cannot be told."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu, {platform.machine()}",
        "driver": _driver() if on_gpu else None,
        "cuda": torch.version.cuda,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **git_state(),
    }


def write(path: Path, record: dict[str, Any]) -> None:
    """Write the record with its checksum."""
    path.write_text(json.dumps(sealed(record), indent=1, allow_nan=False) + "\n")


def _driver() -> str | None:
    words = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
