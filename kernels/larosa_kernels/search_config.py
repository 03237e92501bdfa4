"""How a search over a vector of n entries is run: warps, candidates a round, programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton

from larosa_kernels.dispatch import HALF, INFINITY_BITS, INTERPRETED, has_packed_compare

MAX_WIDTH = 32768


@dataclass(frozen=True)
class SearchConfig:
    """One way to run a search; every way gives the same result.

    num_warps: warps of the searching program. ways: candidates a round, 1 or 3.
    packed: compare two values an instruction by `set` on packed halves (compute capability 9.0 on).
    chunk: entries a program computes before the last one to arrive searches; 0: one program does it all.
    """

    num_warps: int = 4
    ways: int = 3
    packed: bool = True
    chunk: int = 0

    def __post_init__(self) -> None:
        if self.ways not in (1, 3):
            raise ValueError(f"ways: expected 1 or 3, got {self.ways}")
        if self.num_warps not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"num_warps: expected a power of two up to 32, got {self.num_warps}")
        if self.chunk and (self.chunk < 32 or self.chunk & (self.chunk - 1)):
            raise ValueError(f"chunk: expected 0 or a power of two from 32 on, got {self.chunk}")


def default_search(n: int) -> SearchConfig:
    """Warps so that a thread holds at most 64 entries: more warps make each round's barrier dearer."""
    if n <= 8192:
        return SearchConfig(num_warps=4)
    return SearchConfig(num_warps=8 if n <= 16384 else 16)


def block_of(n: int) -> int:
    """The padded width of a vector of n."""
    if n > MAX_WIDTH:
        raise ValueError(f"width: expected at most {MAX_WIDTH} (one program holds the vector), got {n}")
    return int(max(64, triton.next_power_of_2(n)))


def search_arguments(
    n: int, dtype: torch.dtype, device: torch.device, strict: bool, bracketed: bool, config: SearchConfig
) -> dict[str, Any]:
    """The compile-time arguments that the selecting kernels share."""
    if dtype not in HALF:
        raise TypeError(f"x: expected dtype bf16 or fp16, got {dtype}")
    packed = config.packed and has_packed_compare(device)
    return {
        "BLOCK": block_of(n),
        "STRICT": strict,
        "INFINITY": INFINITY_BITS[dtype],
        "WAYS": config.ways,
        "PACKED": ("bf16" if dtype == torch.bfloat16 else "fp16") if packed else "none",
        "TOGETHER": config.num_warps > 1 and not INTERPRETED,
        "BRACKETED": bracketed,
        "num_warps": config.num_warps,
    }
