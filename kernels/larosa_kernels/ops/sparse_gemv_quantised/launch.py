"""Launch of the sparse product of codes, summed in whole numbers."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from larosa_kernels.common.checks import INTERPRETED, refuse_first_use_in_capture
from larosa_kernels.common.gemv import GemvConfig, Product
from larosa_kernels.common.search_config import MAX_WIDTH, block_of
from larosa_kernels.ops.sparse_gemv_quantised import histogram
from larosa_kernels.ops.sparse_gemv_quantised.config import PIECE
from larosa_kernels.ops.sparse_gemv_quantised.kernel import code_gemv_kernel
from larosa_kernels.ops.sparse_gemv_quantised.product import operands, plan, reserve, sharers
from larosa_kernels.ops.sparse_gemv_quantised.product import product as product_of

_FULL = 264
"""Programs of codes, two for each of 132 multiprocessors: where rows of x make as many, no more share a piece."""
_ROWS_A_WARP = 65000
"""Of codes at most: a lane's int32 sums hold 2^31 / (128 * 255)."""
_SHARED = 2**20
"""Entries at most whose rows several programs share: a sum is within 2^20 * 128 * 2^24 = 2^51, whatever an entry is."""
_BEYOND_HELD = 4096
"""Entries at a time of a vector that is too wide for a program to hold."""


@cache
def _parts(device: torch.device) -> Tensor:
    """Zeros, which every launch leaves as zeros; shared by all calls on the device's one stream."""
    refuse_first_use_in_capture("sparse_gemv")
    return torch.zeros(_FULL * 2 * PIECE, dtype=torch.int64, device=device)


def _texts(product: Product, warps: int, stages: int, begin: int, room: int, known: dict[str, Any]) -> dict[str, Any]:
    """The PTX of a launch of codes with its constraints, and how many threads share an output; see `plan`."""
    nibbles, bf16 = product.weight.dtype == torch.uint8, product.x.dtype == torch.bfloat16
    text = product_of(nibbles, warps, stages, product.rule != "all", bf16, product.swiglu, product.overlap, begin)
    share = sharers(nibbles, warps, product.swiglu)
    packed = known["PACKED"] != "none" and not INTERPRETED
    by_counters = product.rule == "search" and product.bracket is not None and packed
    words = known["BLOCK"] // 2 // (32 * warps)
    return {
        "RESERVE": reserve(room) + (histogram.cleared() if by_counters else ""), "PRODUCT": text, "INPUTS": operands(),
        "COUNTED": histogram.counted(words, warps, bf16) if by_counters else "",
        "COUNTED_OPERANDS": histogram.operands(words), "SHARERS": min(share, 1) if INTERPRETED else share,
    }  # fmt: skip


def launch_codes(product: Product, way: GemvConfig) -> Tensor:
    """The product of 8-bit or packed 4-bit codes. Raises ValueError for a launch shape or an address it cannot take."""
    x, weight, tensors, known = product.x, product.weight, product.tensors(), product.known(way)
    if way.num_warps < 4:
        raise ValueError(f"config.num_warps: expected 4, 8 or 16 for codes, got {way.num_warps}")
    (batch, n), nibbles, drops = x.shape, weight.dtype == torch.uint8, product.rule != "all"
    # Here, because torch.compile knows no addresses.
    for name, tensor, bytes_ in (("weight", weight, 16), ("scale", product.scale, 8 if nibbles else 1)):
        if tensor is not None and tensor.data_ptr() % bytes_:
            raise ValueError(f"{name}: expected an address that is a multiple of {bytes_}; clone it")
    blocks = int(triton.cdiv(weight.shape[1], PIECE))
    splits = way.splits if batch * blocks <= _FULL and n <= _SHARED else 1
    own = 2 * int(triton.cdiv(triton.cdiv(n, 2), splits))
    if own > _ROWS_A_WARP * way.num_warps:
        raise ValueError(f"x: expected at most {_ROWS_A_WARP * way.num_warps * splits} entries, got {n}")
    held, least = product.read_twice or n <= MAX_WIDTH, 64 * way.num_warps
    y = product.empty_output()
    del known["THREADS"], known["VECTOR"], known["WIDE"]
    known["BLOCK"] = max(least, block_of(n) if held else _BEYOND_HELD)
    stages, begin, room = plan(nibbles, way.num_warps, way.unroll, own if drops else 0)
    known |= _texts(product, way.num_warps, stages, begin, room, known)
    scratch = (blocks * splits, batch, own) if product.read_twice and (INTERPRETED or not begin) else 1
    line = torch.empty(scratch, dtype=torch.int32 if drops else x.dtype, device=x.device)
    code_gemv_kernel[(blocks * splits, batch)](
        *tensors, y, line, _parts(x.device),
        n, own, product.outputs, weight.shape[1] // 4, 0 if nibbles else product.outputs // 4, product.k, product.eps,
        product.largest_scale, OWN=max(least, triton.next_power_of_2(own)), HELD=held,
        SPLITS=splits, WARPS=way.num_warps, NIBBLES=nibbles, PAIRED=product.paired, OVERLAP=product.overlap,
        launch_pdl=product.overlap, LIST=0 if INTERPRETED else begin, **known,
    )  # fmt: skip
    return y
