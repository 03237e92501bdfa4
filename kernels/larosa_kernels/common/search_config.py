"""Launch shape of a search over a vector that one program holds, and the constants that its kernel is compiled with."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import torch
import triton

from larosa_kernels.common.checks import HALF, INFINITY_BITS, has_packed_compare

MAX_WIDTH = 32768


@dataclass(frozen=True)
class SearchConfig:
    """The launch shape of a search; every shape gives the same result.

    num_warps: warps of the searching program.
    packed: compare two values per instruction, by `set` on packed halves (compute capability 9.0 on).
    """

    num_warps: int = 8
    packed: bool = True

    def __post_init__(self) -> None:
        if self.num_warps not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"num_warps: expected a power of two up to 32, got {self.num_warps}")

    def as_list(self) -> list[int]:
        """The fields as a torch op takes them."""
        return [int(value) for value in astuple(self)]


def default_search(n: int) -> SearchConfig:
    """8 warps, 16 beyond 16384 entries: as few as hold at most 64 entries per thread, for a round costs a barrier."""
    return SearchConfig(num_warps=8 if n <= 16384 else 16)


def block_of(n: int) -> int:
    """The padded width of a vector of n."""
    if n > MAX_WIDTH:
        raise ValueError(f"width: expected at most {MAX_WIDTH} (one program holds the vector), got {n}")
    return int(max(64, triton.next_power_of_2(n)))


def search_arguments(
    x: torch.Tensor, strict: bool, has_range: bool, num_warps: int, packed: bool = True, *others: torch.Tensor
) -> dict[str, Any]:
    """The compile-time arguments of ops that read x [B, n], and `others` alike, as words of two entries and rank x.

    Raises TypeError unless x is bf16 or fp16, ValueError where it is wider than `MAX_WIDTH`.
    """
    n = x.shape[1]
    if x.dtype not in HALF:
        raise TypeError(f"x: expected dtype bf16 or fp16, got {x.dtype}")
    block = block_of(n)
    threads = min(32 * num_warps, block // 2)
    packed = packed and has_packed_compare(x.device)
    return {
        "BLOCK": block,
        "EVEN": n % 2 == 0 and all(each.data_ptr() % 4 == 0 for each in (x, *others)),
        "THREADS": threads,
        "VECTOR": min(4, block // 2 // threads),
        "STRICT": strict,
        "INFINITY": INFINITY_BITS[x.dtype],
        "PACKED": ("bf16" if x.dtype == torch.bfloat16 else "fp16") if packed else "none",
        "HAS_RANGE": has_range,
        "num_warps": num_warps,
    }
