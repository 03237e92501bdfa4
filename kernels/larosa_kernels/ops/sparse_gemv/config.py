"""Launch shapes of the sparse product: a frozen table by (n, outputs), and a rule for the rest.

Tuned by `python kernels/benchmarks/shapes.py`; nothing is tuned while the op runs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton

from larosa_kernels.common.gemv import GemvConfig
from larosa_kernels.ops.sparse_gemv_quantised.config import code_config, in_pieces

TABLE: dict[tuple[int, int], GemvConfig] = {
    (4096, 4096): GemvConfig(32, 8, 16),
}


def _columns(outputs: int) -> int:
    """As many, up to 64, as leave most of 132 multiprocessors a program."""
    fitting = [columns for columns in (64, 32, 16) if triton.cdiv(outputs, columns) >= 112]
    return fitting[0] if fitting else 16


FEW = 0.45
"""Where at most this share of the rows stays, by a limit as expected, bf16 and fp16 go by a list too: at 50 % it is
behind by 1 to 2 % of a site, at 75 % ahead by 13 to 25 % (two sites of LLaMA2-7B, bf16, H100, Top-K)."""


def launch_config(outputs: int, weight: torch.Tensor, kept: int | None) -> GemvConfig:
    """The launch shape for a weight [n, ...] of which `kept` rows stay, or are expected to by a limit.

    None: unknown, as of a limit without its calibration; bf16 and fp16 then go by the mask.
    """
    n = weight.shape[0]
    if in_pieces(weight):
        return code_config(n, weight.dtype, weight.shape[1])
    return replace(gemv_config(n, outputs), compact=kept is not None and kept <= FEW * n)


def gemv_config(n: int, outputs: int) -> GemvConfig:
    """The table's shape, else as many columns, up to 64, as leave most of 132 multiprocessors a program.

    128 where 64 would make more programs than two a multiprocessor: the rest would start when all others are done.
    Wide inputs take more warps: with 8 the search over 11008 entries spilled.
    """
    if (n, outputs) in TABLE:
        return TABLE[n, outputs]
    if n <= 8192 and triton.cdiv(outputs, 64) > 264:
        return GemvConfig(128)
    columns = _columns(outputs)
    return GemvConfig(columns) if n <= 8192 else GemvConfig(min(columns, 32), 8, 16)
