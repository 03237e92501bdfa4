"""Where a result came from: code, library versions, hardware, time and memory of every stage."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from larosa.records.commit import git_state as git_state

PACKAGES = (
    "larosa", "torch", "triton", "transformers", "tokenizers", "safetensors", "accelerate", "datasets", "lm-eval",
    "numpy", "scipy", "pandas", "scikit-learn", "hydra-core", "pydantic", "wandb",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Python's and the packages' versions; a package that is not installed is omitted."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return installed


def timed_on(device: str) -> dict[str, Any]:
    """What a time depends on besides the model: the hardware of this kind of device, and who runs on it."""
    machine, here = hardware(), versions()
    shared = (
        {"gpus": sorted(gpu["name"] for gpu in machine["gpus"])}
        if device == "cuda"
        else {name: machine[name] for name in ("processor", "cores", "torch_threads")}
    )
    return shared | {name: here.get(name) for name in ("torch", "triton")}


def hardware() -> dict[str, Any]:
    """Processor, cores in use, memory in bytes, GPUs."""
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    gpus = [{"name": gpu.name, "memory_bytes": gpu.total_memory, "cuda": torch.version.cuda} for gpu in devices]
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class Stages:
    """Wall time (s) and peak memory (bytes) of named stages; a stage entered twice adds up."""

    def __init__(self) -> None:
        self.record: dict[str, dict[str, float]] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure what runs within."""
        torch.empty(0, device="cuda" if torch.cuda.is_available() else "cpu")  # statistics need a live context
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
        with _PeakMemory() as memory:
            start = time.perf_counter()
            try:
                yield
            finally:
                elapsed = time.perf_counter() - start
        entry = self.record.setdefault(name, {"wall_s": 0.0, "peak_rss_bytes": 0})
        entry["wall_s"] += elapsed
        entry["peak_rss_bytes"] = max(entry["peak_rss_bytes"], memory.peak_bytes)
        if torch.cuda.is_available():
            peak = sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
            entry["peak_gpu_bytes"] = max(entry.get("peak_gpu_bytes", 0), peak)


class _PeakMemory:
    """Samples the process's resident memory every 20 ms on a thread."""

    def __enter__(self) -> _PeakMemory:
        self._process = psutil.Process()
        self.peak_bytes = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)
