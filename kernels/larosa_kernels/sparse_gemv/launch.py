"""Launches of the sparse product: rows in fp32 (kernel.py), and codes in whole numbers (code_kernel.py)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from larosa_kernels.dispatch import INTERPRETED, refuse_first_use_in_capture
from larosa_kernels.search_config import MAX_WIDTH, block_of, search_arguments
from larosa_kernels.sparse_gemv import histogram
from larosa_kernels.sparse_gemv.code_kernel import code_gemv_kernel
from larosa_kernels.sparse_gemv.config import PIECE, GemvConfig
from larosa_kernels.sparse_gemv.kernel import sparse_gemv_kernel
from larosa_kernels.sparse_gemv.product import operands, plan, reserve, sharers
from larosa_kernels.sparse_gemv.product import product as product_of

_REGISTERS = 128
"""A thread's, so that two programs of 8 warps fit a multiprocessor."""
_FULL = 264
"""Programs of codes, two for each of 132 multiprocessors: where rows of x make as many, no more share a piece."""
_ROWS_A_WARP = 65000
"""Of codes at most: a lane's int32 sums hold 2^31 / (128 * 255)."""
_SHARED = 2**20
"""Entries at most whose rows several programs share: a sum is within 2^20 * 128 * 2^24 = 2^51, whatever an entry is."""
_BEYOND_HELD = 4096
"""Entries at a time of a vector that is too wide for a program to hold."""


@dataclass(frozen=True)
class Product:
    """What `select_gemv` and `sparse_gemv` (functional.py) are asked for, checked."""

    x: Tensor
    weight: Tensor
    keep: Tensor | None
    k: int
    strict: bool
    bracket: Tensor | None
    norm: Tensor | None
    eps: float
    swiglu: bool
    gate_limit: Tensor | None
    scale: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    m: int
    largest_scale: float
    paired: bool
    overlap: bool

    @property
    def outputs(self) -> int:
        """Of the launch."""
        return self.m // 2 if self.swiglu else self.m

    @property
    def rule(self) -> str:
        """What stays: `given` by a pair, found by `search`, or `all`."""
        return "given" if self.keep is not None else "search" if self.k < self.x.shape[1] else "all"

    @property
    def read_twice(self) -> bool:
        """Whether a program looks at all of x before it multiplies."""
        return self.norm is not None or self.rule != "all"

    def tensors(self) -> list[Tensor]:
        """Both kernels' first arguments up to the residual; x where there is none."""
        first = (self.x, self.norm, self.bracket, self.keep, self.weight, self.scale, self.bias, self.gate_limit)
        return [self.x if each is None else each for each in (*first, self.residual)]

    def known(self, way: GemvConfig) -> dict[str, Any]:
        """What both kernels know when they are compiled."""
        ranked = self.x if self.read_twice else self.x[:, :1]  # any width goes where one program need not hold it
        others = self.x if self.norm is None else self.norm
        found = search_arguments(ranked, self.strict, self.bracket is not None, way.num_warps, True, others)
        return found | {
            "RULE": self.rule, "NORM": self.norm is not None, "SWIGLU": self.swiglu,
            "GATED": self.gate_limit is not None, "HAS_BIAS": self.bias is not None,
            "HAS_RESIDUAL": self.residual is not None, "INTERPRETED": INTERPRETED, "maxnreg": _REGISTERS,
            "KEEP_STRIDE": 2 if self.keep is not None and self.keep.dim() == 2 else 0,
            "WIDE": self.x.shape[1] * self.m >= 2**31,
        }  # fmt: skip

    def empty_output(self) -> Tensor:
        """y [B, outputs]."""
        return self.x.new_empty((len(self.x), self.outputs))


@cache
def one(device: torch.device) -> Tensor:
    """1.0 where a kernel can read it."""
    refuse_first_use_in_capture("sparse_gemv")
    return torch.ones(1, dtype=torch.float32, device=device)


@cache
def _parts(device: torch.device) -> Tensor:
    """Zeros, which every launch leaves as zeros; shared by all calls on the device's one stream."""
    refuse_first_use_in_capture("sparse_gemv")
    return torch.zeros(_FULL * 2 * PIECE, dtype=torch.int64, device=device)


def launch_rows(product: Product, way: GemvConfig) -> Tensor:
    """The product of weights that are no codes, or of int8 that is not `in_pieces`."""
    x, outputs, known = product.x, product.outputs, product.known(way)
    batch, n = x.shape
    y = product.empty_output()
    rows, compact = way.rows(product.weight.element_size()), way.compact and product.rule != "all"
    unroll = way.unroll // 2 if product.swiglu else way.unroll
    unroll = max(1, min(unroll, 2 ** (-(-n // rows) - 1).bit_length()))
    scratch = (way.blocks(outputs), batch, n) if product.read_twice else 1
    line = torch.empty(scratch, dtype=torch.int32 if compact else x.dtype, device=x.device)
    if compact:
        known["VECTOR"] = 1  # neighbouring words in neighbouring lanes, see kept.py
    sparse_gemv_kernel[(way.blocks(outputs), batch)](
        *product.tensors(), y, line, one(x.device), n, outputs, product.k, product.eps,
        HAS_SCALE=product.scale is not None, COLUMNS=way.columns, ROWS=rows, UNROLL=unroll, COMPACT=compact, **known,
    )  # fmt: skip
    return y


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
