"""Launch shapes of the sparse product: a frozen table by (n, outputs), and a rule for the rest.

Tuned by `python kernels/benchmarks/shapes.py`; nothing is tuned while the op runs.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

import torch
import triton

from larosa_kernels.sparse_gemv.product import MOST_STAGES


@dataclass(frozen=True)
class GemvConfig:
    """columns: outputs a program owns; unroll: loads of 16 bytes a thread has in flight (half as many a matrix where
    gate and up are read side by side); compact: walk a list of kept rows in the place of all rows under a mask.

    A program of codes owns 128 bytes of a row, whatever columns says, always goes by a list where rows are dropped, and
    has `unroll` copies a thread in flight, two at least and as many as shared memory holds at most (product.py).
    splits: programs that share the rows of the same columns.
    """

    columns: int = 64
    unroll: int = 16
    num_warps: int = 8
    compact: bool = False
    splits: int = 1

    def __post_init__(self) -> None:
        for name in ("columns", "unroll", "num_warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name}: expected a power of two, got {value}")
        if self.num_warps > 16:
            raise ValueError(f"num_warps: expected at most 16 (128 registers a thread), got {self.num_warps}")
        if self.splits < 1:
            raise ValueError(f"splits: expected at least 1, got {self.splits}")

    @classmethod
    def of(cls, numbers: list[int]) -> GemvConfig:
        """The inverse of `numbers`."""
        columns, unroll, num_warps, compact, splits = numbers
        return cls(columns, unroll, num_warps, bool(compact), splits)

    @property
    def numbers(self) -> list[int]:
        """The fields as an op of torch takes them."""
        return [int(own) for own in astuple(self)]

    def rows(self, itemsize: int) -> int:
        """Weight rows that the program's threads load at once, 16 bytes each."""
        return max(1, 32 * self.num_warps * (16 // itemsize) // self.columns)

    def blocks(self, outputs: int) -> int:
        """The number of programs a row of x."""
        return int(triton.cdiv(outputs, self.columns))


TABLE: dict[tuple[int, int], GemvConfig] = {
    (4096, 4096): GemvConfig(32, 8, 16),
}


PIECE = 128
"""Bytes of a row that a program of codes owns: a whole line of L2, and what eight lanes of a warp load at once."""


def code_config(n: int, weight: torch.dtype, row_bytes: int) -> GemvConfig:
    """For codes of 8 or 4 bits, rows of `row_bytes`.

    One program a piece where those fill most of 132 multiprocessors; else programs share a piece's rows, at least 256
    each: two of 8 warps a multiprocessor; for 4 bits, which have twice as many sums to meet, one of 16 where that fills
    them. Where more programs than multiprocessors cannot be shared out evenly, four stages keep them alike in speed.
    """
    blocks, nibbles = int(triton.cdiv(row_bytes, PIECE)), weight == torch.uint8
    if blocks >= 100:
        num_warps = 16 if blocks <= 132 else 8
        return GemvConfig(unroll=4, num_warps=num_warps, compact=True)
    one_each = nibbles and 132 // blocks * blocks >= 100
    num_warps = 16 if one_each else 8
    splits = max(1, min((132 if one_each else 264) // blocks, n // 256))
    return GemvConfig(unroll=MOST_STAGES // num_warps, num_warps=num_warps, compact=True, splits=splits)


def in_pieces(weight: torch.Tensor) -> bool:
    """Whether codes can be read 16 bytes at a time, gates and ups apart too, as their kernel does: int8 of 32 j wide.

    Of the weight alone, so that one launch a site and single ones take the same kernel.
    """
    return weight.dtype == torch.uint8 or (weight.dtype == torch.int8 and weight.shape[1] % 32 == 0)


def _columns(outputs: int) -> int:
    """As many, up to 64, as leave most of 132 multiprocessors a program."""
    fitting = [columns for columns in (64, 32, 16) if triton.cdiv(outputs, columns) >= 112]
    return fitting[0] if fitting else 16


FEW = 0.45
"""Where at most this share of the rows stays, by a limit as expected, bf16 and fp16 go by a list too: at 50 % it is
behind by 1 to 2 % of a site, at 75 % ahead by 13 to 25 % (two sites of LLaMA2-7B, bf16, H100, Top-K)."""


def launch_config(outputs: int, weight: torch.Tensor, kept: int | None) -> GemvConfig:
    """The launch shape for a weight [n, ...] of which `kept` rows stay, or are expected to by a limit.

    None: unknown, as of a limit without its calibration; bf16 and fp16 then go by the mask.
    """
    n = weight.shape[0]
    if in_pieces(weight):
        return code_config(n, weight.dtype, weight.shape[1])
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
