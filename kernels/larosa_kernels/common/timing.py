"""Latency of small GPU calls, as a decoder sees it: many of them in one CUDA graph, the inputs in rotation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

PEAK_BYTES_PER_S = {"H100": 3.35e12, "H200": 4.8e12, "A100": 2.04e12}


@dataclass(frozen=True)
class Latency:
    """Microseconds a call: the 20th, 50th and 80th percentile over graph replays."""

    p20_us: float
    p50_us: float
    p80_us: float


def graph_latency(calls: Sequence[Callable[[], object]], rounds: int = 1, replays: int = 25) -> Latency:
    """Time `calls` in turn, `rounds` times over in one graph; three replays of warm-up are not counted."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    samples = []
    for replay in range(3 + replays):
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        if replay >= 3:
            samples.append(start.elapsed_time(end) * 1e3 / (len(calls) * rounds))
    p20, p50, p80 = torch.tensor(samples).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
    return Latency(p20, p50, p80)


def peak_bytes_per_s(name: str) -> float | None:
    """The data sheet's bandwidth of a GPU by its name, None if not known."""
    return next((peak for key, peak in PEAK_BYTES_PER_S.items() if key in name), None)
