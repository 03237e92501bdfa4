"""Buffers of the sparse product, made once for a shape so that CUDA graphs can replay on them.

The counters are zero between launches: each launch's last program resets what it counted. One workspace serves any
number of launches in one stream; launches that may overlap (several streams) need one each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from larosa_kernels.dispatch import refuse_first_use_in_capture
from larosa_kernels.sparse_gemv.config import GemvConfig


@dataclass(frozen=True)
class GemvWorkspace:
    """partials: [B, splits, m] fp32; counters: [B, blocks] int32; rows, values: [B, splits, blocks, slots]."""

    partials: Tensor
    counters: Tensor
    rows: Tensor
    values: Tensor

    @staticmethod
    def make(batch: int, n: int, m: int, config: GemvConfig, device: torch.device) -> GemvWorkspace:
        """Fresh buffers for x [batch, n] and weight [n, m]."""
        blocks = config.blocks(m)
        line = (batch, config.splits, blocks, config.slots(n))
        return GemvWorkspace(
            torch.empty(batch, config.splits, m, dtype=torch.float32, device=device),
            torch.zeros(batch, blocks, dtype=torch.int32, device=device),
            torch.empty(line, dtype=torch.int32, device=device),
            torch.empty(line, dtype=torch.float32, device=device),
        )


_CACHE: dict[tuple[int, int, int, GemvConfig, torch.device], GemvWorkspace] = {}


def cached_workspace(batch: int, n: int, m: int, config: GemvConfig, device: torch.device) -> GemvWorkspace:
    """The workspace of this shape, shared by all calls on the device; made at the first."""
    key = (batch, n, m, config, device)
    if key not in _CACHE:
        refuse_first_use_in_capture("sparse_gemv")
        _CACHE[key] = GemvWorkspace.make(batch, n, m, config, device)
    return _CACHE[key]
