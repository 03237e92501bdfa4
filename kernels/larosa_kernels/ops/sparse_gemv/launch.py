"""Launch of the sparse product of weights in rows, summed in fp32."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from larosa_kernels.common.checks import refuse_first_use_in_capture
from larosa_kernels.common.gemv import GemvConfig, Product
from larosa_kernels.ops.sparse_gemv.kernel import sparse_gemv_kernel


@cache
def one(device: torch.device) -> Tensor:
    """1.0 where a kernel can read it."""
    refuse_first_use_in_capture("sparse_gemv")
    return torch.ones(1, dtype=torch.float32, device=device)


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
