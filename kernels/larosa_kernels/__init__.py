"""Triton kernels for decoding with activation sparsity, each beside a readable torch reference.

They know shapes, not models: a `Keep` pair [B, 2] says which entries of a vector stay (common/selection.py), and
`sparse_gemv` reads the weight rows of those entries only. Names are imported at their first use, so that a module
without Triton, as the packed layout, comes without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from larosa_kernels.common.selection import kept_mask, limit_from_threshold
    from larosa_kernels.ops.decode_attention.api import attend
    from larosa_kernels.ops.greedy_sample.api import pick
    from larosa_kernels.ops.rmsnorm_topk.api import norm_select
    from larosa_kernels.ops.sparse_gemv.api import select_gemv, sparse_gemv
    from larosa_kernels.ops.swiglu_topk.api import swiglu_select
    from larosa_kernels.ops.topk_select.api import select

_MODULES = {
    "attend": "ops.decode_attention.api",
    "kept_mask": "common.selection",
    "limit_from_threshold": "common.selection",
    "norm_select": "ops.rmsnorm_topk.api",
    "pick": "ops.greedy_sample.api",
    "select": "ops.topk_select.api",
    "select_gemv": "ops.sparse_gemv.api",
    "sparse_gemv": "ops.sparse_gemv.api",
    "swiglu_select": "ops.swiglu_topk.api",
}

__all__ = [
    "attend",
    "kept_mask",
    "limit_from_threshold",
    "norm_select",
    "pick",
    "select",
    "select_gemv",
    "sparse_gemv",
    "swiglu_select",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
