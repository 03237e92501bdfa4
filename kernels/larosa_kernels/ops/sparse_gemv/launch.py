"""Launch of the sparse product in fp32 multiply-adds."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from larosa_kernels.common.checks import refuse_first_use_in_capture
from larosa_kernels.common.gemv import GemvCall, GemvConfig
from larosa_kernels.ops.sparse_gemv.kernel import sparse_gemv_kernel


@cache
def one(device: torch.device) -> Tensor:
    """1.0 where the kernel can read it."""
    refuse_first_use_in_capture("sparse_gemv")
    return torch.ones(1, dtype=torch.float32, device=device)


def launch_rows(call: GemvCall, config: GemvConfig) -> Tensor:
    """y [B, outputs] for a bf16 or fp16 weight, or an int8 one that the quantised kernel does not take."""
    x, outputs, constants = call.x, call.outputs, call.constants(config)
    batch, n = x.shape
    y = call.empty_output()
    rows, compact = config.rows(call.weight.element_size()), config.compact and call.selector != "all"
    unroll = config.unroll // 2 if call.swiglu else config.unroll
    unroll = max(1, min(unroll, 2 ** (-(-n // rows) - 1).bit_length()))
    size = (config.blocks(outputs), batch, n) if call.scans_input else 1
    scratch = torch.empty(size, dtype=torch.int32 if compact else x.dtype, device=x.device)
    if compact:
        constants["VECTOR"] = 1  # neighbouring words in neighbouring lanes, see common/compaction.py
    sparse_gemv_kernel[(config.blocks(outputs), batch)](
        *call.tensors(), y, scratch, one(x.device), n, outputs, call.k, call.eps,
        HAS_SCALE=call.scale is not None, COLUMNS=config.columns, ROWS=rows, UNROLL=unroll, COMPACT=compact,
        **constants,
    )  # fmt: skip
    return y
