"""Launch shape and buffers of the decode attention, made once for a shape so that CUDA graphs can replay on them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from larosa_kernels.common.checks import refuse_first_use_in_capture


@dataclass(frozen=True)
class AttentionConfig:
    """The launch shape of the decode attention.

    splits: programs along the positions, a power of two. tile: positions read at a time. num_warps: per program.
    dot: multiply on tensor cores; without it elementwise, which suits one query head per KV head.
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

    def group(self, per_kv: int) -> int:
        """Query heads per KV head, padded to a power of two."""
        return int(triton.next_power_of_2(per_kv))

    def steps(self, width: int) -> int:
        """Positions of a tile per slot; a warp has slots for 256 entries. At least one, so a tile may be wider."""
        return max(1, self.tile // (self.num_warps * max(1, 256 // width)))

    def lines(self) -> int:
        """Partial sums ("lines") per head: one per program, or elementwise one per warp."""
        return self.splits if self.dot else self.splits * self.num_warps

    def combines_lightly(self, per_kv: int) -> bool:
        """Whether the last program holds all lines of `per_kv` heads in registers; beyond that it spills them."""
        return self.lines() * self.group(per_kv) <= 16 * self.num_warps


def default_attention(rows: int, kv_heads: int, per_kv: int) -> AttentionConfig:
    """Two programs per multiprocessor; one, on tensor cores, where query heads share a KV head.

    Tiles of 128 positions beat 64 by 1 to 4 us from 128 to 8192 positions with 4 query heads per KV head and 8 KV
    heads; with 7 and 4 they lose up to 4096 positions (H100).
    """
    wanted = triton.cdiv(256 if per_kv == 1 else 128, rows * kv_heads)
    config = AttentionConfig(int(triton.next_power_of_2(wanted)), 128 if 1 < per_kv <= 4 else 64, dot=per_kv > 1)
    while config.splits > 1 and not config.combines_lightly(per_kv):
        config = replace(config, splits=config.splits // 2)
    return config


@dataclass(frozen=True)
class AttentionWorkspace:
    """Buffers of one shape. mix: [B, KV, group, lines, hd]; maxima, sums: [B, KV, group, lines], fp32.

    counters: [B, KV] int32 zeros, which every launch leaves as zeros.
    """

    mix: Tensor
    maxima: Tensor
    sums: Tensor
    counters: Tensor

    @staticmethod
    def make(
        rows: int, kv_heads: int, per_kv: int, width: int, config: AttentionConfig, device: torch.device
    ) -> AttentionWorkspace:
        """Fresh buffers for `per_kv` query heads per KV head, of `width` entries each."""
        line = (rows, kv_heads, config.group(per_kv), config.lines())
        return AttentionWorkspace(
            torch.empty(*line, width, dtype=torch.float32, device=device),
            torch.empty(line, dtype=torch.float32, device=device),
            torch.empty(line, dtype=torch.float32, device=device),
            torch.zeros(rows, kv_heads, dtype=torch.int32, device=device),
        )


_CACHE: dict[tuple[int, int, int, int, AttentionConfig, torch.device], AttentionWorkspace] = {}


def cached_workspace(
    rows: int, kv_heads: int, per_kv: int, width: int, config: AttentionConfig, device: torch.device
) -> AttentionWorkspace:
    """The workspace of this shape, made at the first call and shared by all calls on the device's one stream."""
    key = (rows, kv_heads, per_kv, width, config, device)
    if key not in _CACHE:
        refuse_first_use_in_capture("decode_attention")
        _CACHE[key] = AttentionWorkspace.make(rows, kv_heads, per_kv, width, config, device)
    return _CACHE[key]
