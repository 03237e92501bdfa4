"""Launch shapes of the sparse product: a frozen table by (n, outputs), and a rule for the rest.

Tuned by `python kernels/benchmarks/shapes.py`; nothing is tuned while the op runs.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import torch
import triton


@dataclass(frozen=True)
class GemvConfig:
    """columns: outputs a program owns; unroll: loads of 16 bytes a thread has in flight (half as many a matrix where
    gate and up are read side by side); compact: walk a list of kept rows in the place of all rows under a mask; halves:
    load one half of them while the other is summed."""

    columns: int = 64
    unroll: int = 16
    num_warps: int = 8
    compact: bool = False
    halves: bool = False

    def __post_init__(self) -> None:
        for name in ("columns", "unroll", "num_warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name}: expected a power of two, got {value}")
        if self.num_warps > 16:
            raise ValueError(f"num_warps: expected at most 16 (128 registers a thread), got {self.num_warps}")

    @classmethod
    def of(cls, numbers: list[int]) -> GemvConfig:
        """The inverse of `numbers`."""
        columns, unroll, num_warps, compact, halves = numbers
        return cls(columns, unroll, num_warps, bool(compact), bool(halves))

    @property
    def numbers(self) -> list[int]:
        """The fields as an op of torch takes them."""
        return [int(own) for own in astuple(self)]

    def rows(self, itemsize: int) -> int:
        """Weight rows that the program's threads load at once, 16 bytes each."""
        return self._lines(16 // itemsize)

    @property
    def packed_rows(self) -> int:
        """The same of a weight of 4-bit codes."""
        return self._lines(32)

    def _lines(self, weights: int) -> int:
        return max(1, 32 * self.num_warps * weights // self.columns)

    def blocks(self, outputs: int) -> int:
        """The number of programs a row of x."""
        return int(triton.cdiv(outputs, self.columns))


TABLE: dict[tuple[int, int], GemvConfig] = {
    (4096, 4096): GemvConfig(32, 8, 16),
}


PACKED_COLUMNS = 64
"""Outputs at most that a program owns of packed 4-bit codes: those of one group."""


def packed_config(n: int, outputs: int) -> GemvConfig:
    """For packed 4-bit codes."""
    return _of_codes(n, _columns(outputs))


def int8_config(n: int, outputs: int) -> GemvConfig:
    """For int8."""
    return _of_codes(n, 128 if triton.cdiv(outputs, 64) > 264 else _columns(outputs))


def _of_codes(n: int, columns: int) -> GemvConfig:
    """Codes take as many sums a thread as a load holds, so fewer loads are under way."""
    return GemvConfig(columns, 4, halves=True) if n <= 8192 else GemvConfig(min(columns, 32), 4, 16, halves=True)


def _columns(outputs: int) -> int:
    """As many, up to 64, as leave most of 132 multiprocessors a program."""
    fitting = [columns for columns in (64, 32, 16) if triton.cdiv(outputs, columns) >= 112]
    return fitting[0] if fitting else 16


FEW = 0.45
"""Where at most this share of the rows stays, by a limit as expected, bf16 and fp16 go by a list too: at 50 % it is
behind by 1 to 2 % of a site, at 75 % ahead by 13 to 25 % (two sites of LLaMA2-7B, bf16, H100, Top-K)."""


def launch_config(n: int, outputs: int, weight: torch.dtype, kept: int | None) -> GemvConfig:
    """The launch shape for a weight of this dtype of which `kept` rows stay, or are expected to by a limit.

    None: unknown, as of a limit without its calibration; bf16 and fp16 then go by the mask.

    Codes go by a list wherever rows are dropped: under a mask a dropped row costs as many instructions as a kept one.
    """
    rules = {torch.uint8: packed_config, torch.int8: int8_config}
    if weight in rules:
        return replace(rules[weight](n, outputs), compact=kept is None or kept < n)
    return replace(gemv_config(n, outputs), compact=kept is not None and kept <= FEW * n)


def gemv_config(n: int, outputs: int) -> GemvConfig:
    """The table's shape, else as many columns, up to 64, as leave most of 132 multiprocessors a program.

    128 where 64 would make more programs than two a multiprocessor: the rest would start when all others are done.
    Wide inputs take more warps: with 8 the search over 11008 entries spilled.
    """
    if (n, outputs) in TABLE:
        return TABLE[n, outputs]
    if n <= 8192 and triton.cdiv(outputs, 64) > 264:
        return GemvConfig(128)
    columns = _columns(outputs)
    return GemvConfig(columns) if n <= 8192 else GemvConfig(min(columns, 32), 8, 16)
