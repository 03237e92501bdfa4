"""Launch shape and buffers of the decode attention, made once for a shape so that CUDA graphs can replay on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from larosa_kernels.dispatch import refuse_first_use_in_capture


@dataclass(frozen=True)
class AttendConfig:
    """splits: programs along the positions (a power of two); tile: positions read at a time; dot: tensor cores.

    Without `dot` a program multiplies elementwise, which suits one query head a KV head.
    """

    splits: int = 8
    tile: int = 32
    num_warps: int = 4
    stages: int = 2
    dot: bool = False

    def __post_init__(self) -> None:
        for name in ("splits", "tile", "num_warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name}: expected a power of two, got {value}")

    def group(self, per: int) -> int:
        """Query heads a KV head, padded: tensor cores take 16 rows."""
        padded = int(triton.next_power_of_2(per))
        return max(16, padded) if self.dot else padded


def default_attend(rows: int, kv_heads: int, per: int) -> AttendConfig:
    """Two programs a streaming multiprocessor, tensor cores where query heads share a KV head."""
    splits = min(32, max(1, triton.next_power_of_2(triton.cdiv(256, rows * kv_heads))))
    return AttendConfig(splits=int(splits), dot=per > 1)


@dataclass(frozen=True)
class AttendWorkspace:
    """mix: [B, KV, splits, group, hd]; maxima, sums: [B, KV, splits, group], fp32; counters: [B, KV] int32 zeros."""

    mix: Tensor
    maxima: Tensor
    sums: Tensor
    counters: Tensor

    @staticmethod
    def make(
        rows: int, kv_heads: int, per: int, width: int, config: AttendConfig, device: torch.device
    ) -> AttendWorkspace:
        """Fresh buffers for `per` query heads a KV head of `width`."""
        line = (rows, kv_heads, config.splits, config.group(per))
        return AttendWorkspace(
            torch.empty(*line, width, dtype=torch.float32, device=device),
            torch.empty(line, dtype=torch.float32, device=device),
            torch.empty(line, dtype=torch.float32, device=device),
            torch.zeros(rows, kv_heads, dtype=torch.int32, device=device),
        )


_CACHE: dict[tuple[int, int, int, int, AttendConfig, torch.device], AttendWorkspace] = {}


def cached_workspace(
    rows: int, kv_heads: int, per: int, width: int, config: AttendConfig, device: torch.device
) -> AttendWorkspace:
    """The workspace of this shape, shared by all calls on the device's one stream; made at the first."""
    key = (rows, kv_heads, per, width, config, device)
    if key not in _CACHE:
        refuse_first_use_in_capture("attend")
        _CACHE[key] = AttendWorkspace.make(rows, kv_heads, per, width, config, device)
    return _CACHE[key]
