"""Launch shape and buffers of the decode attention, made once for a shape so that CUDA graphs can replay on them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from larosa_kernels.common.checks import refuse_first_use_in_capture


@dataclass(frozen=True)
class AttendConfig:
    """splits: programs along the positions (a power of two); tile: positions read at a time; dot: tensor cores.

    Without `dot` a program multiplies elementwise, which suits one query head a KV head.
    """

    splits: int = 8
    tile: int = 64
    num_warps: int = 8
    dot: bool = False

    def __post_init__(self) -> None:
        for name in ("splits", "tile", "num_warps"):
            value = getattr(self, name)
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name}: expected a power of two, got {value}")
        if self.dot and self.tile < 16:
            raise ValueError(f"tile: expected at least 16 positions for tensor cores, got {self.tile}")

    def group(self, per: int) -> int:
        """Query heads a KV head, padded to a power of two."""
        return int(triton.next_power_of_2(per))

    def steps(self, width: int) -> int:
        """Positions a slot takes of a tile; a warp has slots for 256 entries. One at least, so a tile may be wider."""
        return max(1, self.tile // (self.num_warps * max(1, 256 // width)))

    def lines(self) -> int:
        """Partial sums that a head's programs leave: one a program, or elementwise one a warp."""
        return self.splits if self.dot else self.splits * self.num_warps

    def combines_lightly(self, per: int) -> bool:
        """Whether the last program holds all partial sums of `per` heads in registers: beyond, it spills them."""
        return self.lines() * self.group(per) <= 16 * self.num_warps


def default_attend(rows: int, kv_heads: int, per: int) -> AttendConfig:
    """Two programs a streaming multiprocessor, or where query heads share a KV head one, on tensor cores.

    Tiles of 128 beat 64 from 128 to 8192 positions with 4 query heads a KV head and 8 KV heads, by 1 to 4 us; with 7
    and 4 they lose up to 4096 (H100).
    """
    wanted = triton.cdiv(256 if per == 1 else 128, rows * kv_heads)
    config = AttendConfig(int(triton.next_power_of_2(wanted)), 128 if 1 < per <= 4 else 64, dot=per > 1)
    while config.splits > 1 and not config.combines_lightly(per):
        config = replace(config, splits=config.splits // 2)
    return config


@dataclass(frozen=True)
class AttendWorkspace:
    """mix: [B, KV, group, lines, hd]; maxima, sums: [B, KV, group, lines], fp32; counters: [B, KV] int32 zeros."""

    mix: Tensor
    maxima: Tensor
    sums: Tensor
    counters: Tensor

    @staticmethod
    def make(
        rows: int, kv_heads: int, per: int, width: int, config: AttendConfig, device: torch.device
    ) -> AttendWorkspace:
        """Fresh buffers for `per` query heads a KV head of `width`."""
        line = (rows, kv_heads, config.group(per), config.lines())
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
