"""A measurement as a typed row, what collects them, and their table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from larosa_kernels.common.timing import graph_latency, peak_bytes_per_s


@dataclass(frozen=True)
class Row:
    """One measurement: what ran, on which shape, how long, how much it read."""

    op: str
    model: str
    site: str
    variant: str
    n: int
    m: int
    level: float
    dtype: str
    p20_us: float
    p50_us: float
    p80_us: float
    read_bytes: int
    share_of_peak: float | None


class Recorder:
    """Measures and collects rows for one dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.rows: list[Row] = []
        self.peak = peak_bytes_per_s(torch.cuda.get_device_name())

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers on the GPU."""
        return torch.randn(*shape, dtype=self.dtype, device="cuda")

    def time(
        self, op: str, model: str, site: str, variant: str, shape: tuple[int, int], level: float, read: int,
        calls: Sequence[Callable[[], object]], rounds: int = 1,
    ) -> float:  # fmt: skip
        """Measure one variant, bound the row, return the median in us."""
        latency = graph_latency(calls, rounds)
        share = read / (latency.p50_us * 1e-6) / self.peak if self.peak else None
        row = Row(
            op, model, site, variant, *shape, level, str(self.dtype), **asdict(latency), read_bytes=read,
            share_of_peak=share,
        )  # fmt: skip
        self.rows.append(row)
        return latency.p50_us


def table(rows: list[Row]) -> str:
    """Rows as text."""
    head = f"{'op':14}{'model':11}{'site':9}{'n':>6}{'m':>7}{'level':>6}"
    lines = [f"{head}{'p20 us':>8}{'p50 us':>8}{'p80 us':>8}{'peak':>6}  variant"]
    for row in rows:
        share = f"{row.share_of_peak:6.0%}" if row.share_of_peak else "     -"
        lines.append(
            f"{row.op:14}{row.model:11}{row.site:9}{row.n:6}{row.m:7}{row.level:6.2f}"
            f"{row.p20_us:8.2f}{row.p50_us:8.2f}{row.p80_us:8.2f}{share}  {row.variant}"
        )
    return "\n".join(lines)
