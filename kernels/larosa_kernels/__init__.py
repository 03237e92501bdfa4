"""Triton kernels for decoding with activation sparsity, each beside a readable torch reference.

They know shapes, not models: a selection bound [B, 2] says which entries of a vector are selected
(common/selection.py), and `sparse_gemv` reads the weight rows of those entries only. Names are imported at first use:
a module that needs no Triton, like the packed layout, is imported without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from larosa_kernels.common.selection import bound_from_threshold, selected_mask
    from larosa_kernels.ops.decode_attention.api import decode_attention
    from larosa_kernels.ops.greedy_sample.api import greedy_sample
    from larosa_kernels.ops.rmsnorm_topk.api import rmsnorm_topk
    from larosa_kernels.ops.sparse_gemv.api import fused_sparse_gemv, sparse_gemv
    from larosa_kernels.ops.swiglu_topk.api import swiglu_topk
    from larosa_kernels.ops.topk_select.api import topk_select

_MODULES = {
    "decode_attention": "ops.decode_attention.api",
    "selected_mask": "common.selection",
    "bound_from_threshold": "common.selection",
    "rmsnorm_topk": "ops.rmsnorm_topk.api",
    "greedy_sample": "ops.greedy_sample.api",
    "topk_select": "ops.topk_select.api",
    "fused_sparse_gemv": "ops.sparse_gemv.api",
    "sparse_gemv": "ops.sparse_gemv.api",
    "swiglu_topk": "ops.swiglu_topk.api",
}

__all__ = [
    "bound_from_threshold",
    "decode_attention",
    "fused_sparse_gemv",
    "greedy_sample",
    "rmsnorm_topk",
    "selected_mask",
    "sparse_gemv",
    "swiglu_topk",
    "topk_select",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
