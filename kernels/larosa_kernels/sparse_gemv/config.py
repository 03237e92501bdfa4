"""Launch shapes of the sparse product: a frozen table by (n, m), and a rule for the rest.

Tuned by `python kernels/benchmarks/kernels.py --tune`; nothing is tuned while the op runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton


@dataclass(frozen=True)
class GemvConfig:
    """columns: output columns a program owns; rows: weight rows gathered at a time; splits: along the input.

    stages: software pipelining of the gather loop; defer: keep `rows` sums apart until the end of the loop, which
    spares warps that hold different rows a reduction an iteration.
    """

    columns: int = 512
    rows: int = 8
    splits: int = 32
    num_warps: int = 2
    stages: int = 1
    defer: bool = False

    def __post_init__(self) -> None:
        for name in ("columns", "rows", "num_warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name}: expected a power of two, got {value}")
        if self.splits < 1 or self.stages < 1:
            raise ValueError(f"splits and stages: expected at least 1, got {self.splits} and {self.stages}")

    def slots(self, n: int) -> int:
        """The padded number of rows of a split."""
        return int(max(16, triton.next_power_of_2(triton.cdiv(n, self.splits))))

    def blocks(self, m: int) -> int:
        """The number of column blocks."""
        return int(triton.cdiv(m, self.columns))


TABLE: dict[tuple[int, int], GemvConfig] = {
    # LLaMA2-7B: qkv, o, gate + up, down
    (4096, 12288): GemvConfig(splits=64),
    (4096, 4096): GemvConfig(splits=64),
    (4096, 22016): GemvConfig(splits=64),
    (11008, 4096): GemvConfig(splits=64),
    # LLaMA3-8B
    (4096, 6144): GemvConfig(splits=64),
    (4096, 28672): GemvConfig(splits=64),
    (14336, 4096): GemvConfig(splits=64),
}


def gemv_config(n: int, m: int) -> GemvConfig:
    """The table's shape, else columns that m fills and splits for some 800 programs of 32 rows or more."""
    if (n, m) in TABLE:
        return TABLE[n, m]
    columns = min(512, max(64, triton.next_power_of_2(m)))
    wanted = triton.cdiv(800, triton.cdiv(m, columns))
    splits = max(1, min(64, triton.next_power_of_2(wanted), n // 32))
    return GemvConfig(columns=int(columns), splits=int(splits))
