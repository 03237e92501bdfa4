"""Launch of the quantised product: shared memory, PTX and scratch for one shape."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from larosa_kernels.common.checks import INTERPRETED, refuse_first_use_in_capture
from larosa_kernels.common.gemv import GemvCall, GemvConfig
from larosa_kernels.common.search_config import MAX_WIDTH, block_of
from larosa_kernels.ops.sparse_gemv_quantised import histogram
from larosa_kernels.ops.sparse_gemv_quantised.config import TILE_BYTES
from larosa_kernels.ops.sparse_gemv_quantised.kernel import sparse_gemv_quantised_kernel
from larosa_kernels.ops.sparse_gemv_quantised.product import operands, plan, product, reserve, sharers

_MAX_PROGRAMS = 264
"""Two for each of 132 multiprocessors: where the rows of x alone make as many programs, none share a tile's rows."""
_MAX_ROWS_PER_WARP = 65000
"""A lane's int32 sums hold 2^31 / (128 * 255) products of a weight's byte by an entry's."""
_MAX_SPLIT_WIDTH = 2**20
"""Entries at most whose rows programs split: their sum is at most 2^20 * 128 * 2^24 = 2^51, below the counter's bit."""
_CHUNK = 4096
"""Entries at a time of a vector that is too wide for a program to hold."""


@cache
def partial_sums(device: torch.device) -> Tensor:
    """Zeros, which every launch leaves as zeros; shared by all calls on the device's one stream."""
    refuse_first_use_in_capture("sparse_gemv")
    return torch.zeros(_MAX_PROGRAMS * 2 * TILE_BYTES, dtype=torch.int64, device=device)


def _assembly(
    call: GemvCall, warps: int, stages: int, list_offset: int, shared_bytes: int, constants: dict[str, Any]
) -> dict[str, Any]:
    """The PTX of a launch with its constraints, and how many threads share an output; see `plan`."""
    int4, bf16 = call.weight.dtype == torch.uint8, call.x.dtype == torch.bfloat16
    text = product(int4, warps, stages, call.selector != "all", bf16, call.swiglu, call.overlap, list_offset)
    share = sharers(int4, warps, call.swiglu)
    packed = constants["PACKED"] != "none" and not INTERPRETED
    by_histogram = call.selector == "topk" and call.search_range is not None and packed
    words = constants["BLOCK"] // 2 // (32 * warps)
    return {
        "RESERVE": reserve(shared_bytes) + (histogram.cleared() if by_histogram else ""),
        "PRODUCT": text, "INPUTS": operands(),
        "COUNTED": histogram.counted(words, warps, bf16) if by_histogram else "",
        "COUNTED_OPERANDS": histogram.operands(words), "SHARERS": min(share, 1) if INTERPRETED else share,
    }  # fmt: skip


def launch_quantised(call: GemvCall, config: GemvConfig) -> Tensor:
    """y [B, outputs] for an int8 or packed 4-bit weight.

    Raises ValueError for a launch shape, a width or an address that the kernel cannot take.
    """
    x, weight, constants, warps = call.x, call.weight, call.constants(config), config.num_warps
    if warps < 4:
        raise ValueError(f"config.num_warps: expected 4, 8 or 16 for a quantised weight, got {warps}")
    (batch, n), int4, drops = x.shape, weight.dtype == torch.uint8, call.selector != "all"
    # Here, because torch.compile knows no addresses.
    for name, tensor, bytes_ in (("weight", weight, 16), ("scale", call.scale, 8 if int4 else 1)):
        if tensor is not None and tensor.data_ptr() % bytes_:
            raise ValueError(f"{name}: expected an address that is a multiple of {bytes_}; clone it")
    tiles = int(triton.cdiv(weight.shape[1], TILE_BYTES))
    splits = config.splits if batch * tiles <= _MAX_PROGRAMS and n <= _MAX_SPLIT_WIDTH else 1
    split_width = 2 * int(triton.cdiv(triton.cdiv(n, 2), splits))
    if split_width > _MAX_ROWS_PER_WARP * warps:
        raise ValueError(f"x: expected at most {_MAX_ROWS_PER_WARP * warps * splits} entries, got {n}")
    in_registers, least = call.scans_input or n <= MAX_WIDTH, 64 * warps
    y = call.empty_output()
    del constants["THREADS"], constants["VECTOR"], constants["WIDE"]
    constants["BLOCK"] = max(least, block_of(n) if in_registers else _CHUNK)
    stages, list_offset, shared_bytes = plan(int4, warps, config.unroll, split_width if drops else 0)
    constants |= _assembly(call, warps, stages, list_offset, shared_bytes, constants)
    size = (tiles * splits, batch, split_width) if call.scans_input and (INTERPRETED or not list_offset) else 1
    scratch = torch.empty(size, dtype=torch.int32 if drops else x.dtype, device=x.device)
    sparse_gemv_quantised_kernel[(tiles * splits, batch)](
        *call.tensors(), y, scratch, partial_sums(x.device),
        n, split_width, call.outputs, weight.shape[1] // 4, 0 if int4 else call.outputs // 4, call.k, call.eps,
        call.max_scale, SPLIT_BLOCK=max(least, triton.next_power_of_2(split_width)), IN_REGISTERS=in_registers,
        SPLITS=splits, WARPS=warps, INT4=int4, PAIRED=call.paired, OVERLAP=call.overlap,
        launch_pdl=call.overlap, LIST=0 if INTERPRETED else list_offset, **constants,
    )  # fmt: skip
    return y
