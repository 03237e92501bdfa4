"""A sparse product as both of its kernels are asked for it: the checked arguments, and the launch shape."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import triton
from torch import Tensor

from larosa_kernels.common.checks import INTERPRETED
from larosa_kernels.common.search_config import search_arguments

_MAX_REGISTERS = 128
"""Per thread, so that two programs of 8 warps fit a multiprocessor."""


@dataclass(frozen=True)
class GemvConfig:
    """The launch shape of a sparse product.

    columns: outputs per program.
    unroll: 16-byte loads in flight per thread (half as many per matrix where gate and up are read side by side).
    num_warps: warps per program.
    compact: walk a list of the selected rows instead of all rows under a mask.
    splits: programs that share the rows of the same columns.

    The quantised kernel owns 128 bytes of a row whatever `columns` says, always walks a list where rows are dropped,
    and has `unroll` copies in flight per thread, at least two and at most what shared memory holds. Only it splits.
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
            raise ValueError(f"num_warps: expected at most 16 (128 registers per thread), got {self.num_warps}")
        if self.splits < 1:
            raise ValueError(f"splits: expected at least 1, got {self.splits}")

    @classmethod
    def from_list(cls, numbers: list[int]) -> GemvConfig:
        """The inverse of `as_list`."""
        columns, unroll, num_warps, compact, splits = numbers
        return cls(columns, unroll, num_warps, bool(compact), splits)

    def as_list(self) -> list[int]:
        """The fields as a torch op takes them."""
        return [int(value) for value in astuple(self)]

    def rows(self, itemsize: int) -> int:
        """Weight rows that the program's threads load at once, 16 bytes each."""
        return max(1, 32 * self.num_warps * (16 // itemsize) // self.columns)

    def blocks(self, outputs: int) -> int:
        """Programs per row of x."""
        return int(triton.cdiv(outputs, self.columns))


@dataclass(frozen=True)
class GemvCall:
    """The arguments of `sparse_gemv` and `fused_sparse_gemv` (ops/sparse_gemv/api.py), checked.

    x: [B, n]; weight: [n, ...] input-major; bound: [B, 2], or [2] for all rows, None where k decides.
    k: entries to select per row; strict: ties beyond k are dropped; search_range: [2] or None.
    norm: [n] gamma of an RMSNorm in front, with eps; swiglu: the columns are gates, then ups; gate_threshold: [2].
    scale: of a quantised weight; bias: [out_features]; residual: [B, outputs].
    out_features: columns of the weight; max_scale: no |scale| of a 4-bit weight exceeds it; paired: gates and ups of a
    4-bit weight alternate by groups; overlap: the launch may begin before its predecessor has ended.
    """

    x: Tensor
    weight: Tensor
    bound: Tensor | None
    k: int
    strict: bool
    search_range: Tensor | None
    norm: Tensor | None
    eps: float
    swiglu: bool
    gate_threshold: Tensor | None
    scale: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    out_features: int
    max_scale: float
    paired: bool
    overlap: bool

    @property
    def outputs(self) -> int:
        """Outputs per row of x: half the weight's columns with swiglu."""
        return self.out_features // 2 if self.swiglu else self.out_features

    @property
    def selector(self) -> str:
        """How entries are selected: by a given `bound`, as the `topk` that a search finds, or `all`."""
        return "bound" if self.bound is not None else "topk" if self.k < self.x.shape[1] else "all"

    @property
    def scans_input(self) -> bool:
        """Whether a program reads all of x before it multiplies: to norm it, or to select."""
        return self.norm is not None or self.selector != "all"

    def tensors(self) -> list[Tensor]:
        """The first arguments of both kernels, up to the residual; x stands in for what is None."""
        first = (self.x, self.norm, self.search_range, self.bound, self.weight, self.scale, self.bias)
        return [self.x if each is None else each for each in (*first, self.gate_threshold, self.residual)]

    def constants(self, config: GemvConfig) -> dict[str, Any]:
        """The compile-time arguments that both kernels share."""
        ranked = self.x if self.scans_input else self.x[:, :1]  # any width goes where one program need not hold it
        others = self.x if self.norm is None else self.norm
        search = search_arguments(ranked, self.strict, self.search_range is not None, config.num_warps, True, others)
        return search | {
            "SELECTOR": self.selector, "NORM": self.norm is not None, "SWIGLU": self.swiglu,
            "GATED": self.gate_threshold is not None, "HAS_BIAS": self.bias is not None,
            "HAS_RESIDUAL": self.residual is not None, "INTERPRETED": INTERPRETED, "maxnreg": _MAX_REGISTERS,
            "BOUND_STRIDE": 2 if self.bound is not None and self.bound.dim() == 2 else 0,
            "WIDE": self.x.shape[1] * self.out_features >= 2**31,
        }  # fmt: skip

    def empty_output(self) -> Tensor:
        """y [B, outputs]."""
        return self.x.new_empty((len(self.x), self.outputs))
