"""A sparse product as both of its kernels are asked for it: the checked arguments, and the launch shape."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import triton
from torch import Tensor

from larosa_kernels.common.checks import INTERPRETED
from larosa_kernels.common.search_config import search_arguments

_REGISTERS = 128
"""A thread's, so that two programs of 8 warps fit a multiprocessor."""


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


@dataclass(frozen=True)
class Product:
    """What `select_gemv` and `sparse_gemv` (api.py) are asked for, checked."""

    x: Tensor
    weight: Tensor
    keep: Tensor | None
    k: int
    strict: bool
    bracket: Tensor | None
    norm: Tensor | None
    eps: float
    swiglu: bool
    gate_limit: Tensor | None
    scale: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    m: int
    largest_scale: float
    paired: bool
    overlap: bool

    @property
    def outputs(self) -> int:
        """Of the launch."""
        return self.m // 2 if self.swiglu else self.m

    @property
    def rule(self) -> str:
        """What stays: `given` by a pair, found by `search`, or `all`."""
        return "given" if self.keep is not None else "search" if self.k < self.x.shape[1] else "all"

    @property
    def read_twice(self) -> bool:
        """Whether a program looks at all of x before it multiplies."""
        return self.norm is not None or self.rule != "all"

    def tensors(self) -> list[Tensor]:
        """Both kernels' first arguments up to the residual; x where there is none."""
        first = (self.x, self.norm, self.bracket, self.keep, self.weight, self.scale, self.bias, self.gate_limit)
        return [self.x if each is None else each for each in (*first, self.residual)]

    def known(self, way: GemvConfig) -> dict[str, Any]:
        """What both kernels know when they are compiled."""
        ranked = self.x if self.read_twice else self.x[:, :1]  # any width goes where one program need not hold it
        others = self.x if self.norm is None else self.norm
        found = search_arguments(ranked, self.strict, self.bracket is not None, way.num_warps, True, others)
        return found | {
            "RULE": self.rule, "NORM": self.norm is not None, "SWIGLU": self.swiglu,
            "GATED": self.gate_limit is not None, "HAS_BIAS": self.bias is not None,
            "HAS_RESIDUAL": self.residual is not None, "INTERPRETED": INTERPRETED, "maxnreg": _REGISTERS,
            "KEEP_STRIDE": 2 if self.keep is not None and self.keep.dim() == 2 else 0,
            "WIDE": self.x.shape[1] * self.m >= 2**31,
        }  # fmt: skip

    def empty_output(self) -> Tensor:
        """y [B, outputs]."""
        return self.x.new_empty((len(self.x), self.outputs))
