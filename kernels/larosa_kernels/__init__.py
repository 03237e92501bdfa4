"""Triton kernels for decoding with activation sparsity, each beside a readable torch reference.

They know shapes, not models: a `Keep` pair [B, 2] says which entries of a vector stay (select/reference.py), and
`sparse_gemv` reads the weight rows of those entries only.
"""

from larosa_kernels.attend.functional import attend
from larosa_kernels.norm_select.functional import norm_select
from larosa_kernels.pick.functional import pick
from larosa_kernels.select.functional import select
from larosa_kernels.select.reference import kept_mask, limit_from_threshold
from larosa_kernels.sparse_gemv.functional import select_gemv, sparse_gemv
from larosa_kernels.swiglu_select.functional import swiglu_select

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
