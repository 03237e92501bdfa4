"""Where and by what code a benchmark ran: GPU, driver, versions, date, commit; and its record on disk."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from larosa_kernels.common.commit import answer, git_state

PACKAGES = ("torch", "triton", "transformers", "numpy")


def environment(device: torch.device) -> dict[str, Any]:
    """Of this process and of this code; None where it cannot be told."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu, {platform.machine()}",
        "driver": answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if on_gpu else None,
        "cuda": torch.version.cuda,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **git_state(Path(__file__), Path(__file__).resolve().parents[2]),
    }


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record with its `checksum`: SHA-256 of the rest as JSON with sorted keys and no blanks.

    Raises ValueError for a number that is NaN or infinite.
    """
    content = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    checksum = hashlib.sha256(content.encode()).hexdigest()
    path.write_text(json.dumps(record | {"checksum": checksum}, indent=1) + "\n", encoding="utf-8")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
