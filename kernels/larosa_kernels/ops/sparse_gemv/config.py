"""Launch shapes of the sparse product: a frozen table by (n, outputs), and a rule for the rest; see README.md.

Tuned by `python -m larosa_kernels.benchmarks.tune_gemv`; nothing is tuned while the op runs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton

from larosa_kernels.common.gemv import GemvConfig
from larosa_kernels.ops.sparse_gemv_quantised.config import fits_quantised_kernel, quantised_config

TABLE: dict[tuple[int, int], GemvConfig] = {
    (4096, 4096): GemvConfig(32, 8, 16),
}
COMPACT_SHARE = 0.45
"""At most this share of rows selected: a list. bf16, H100, Top-K, two sites of LLaMA2-7B: with 50 % of the rows a list
takes 1 to 2 % longer than the mask, with 25 % 13 to 25 % less."""


def launch_config(outputs: int, weight: torch.Tensor, selected: int | None) -> GemvConfig:
    """The launch shape for a weight [n, ...] of which `selected` rows are read, or are expected to by a threshold.

    None: unknown, as of a threshold without its calibration; bf16 and fp16 then walk all rows under a mask.
    """
    n = weight.shape[0]
    if fits_quantised_kernel(weight):
        return quantised_config(n, weight.dtype, weight.shape[1])
    return replace(gemv_config(n, outputs), compact=selected is not None and selected <= COMPACT_SHARE * n)


def gemv_config(n: int, outputs: int) -> GemvConfig:
    """The table's shape, else as many columns, up to 64, as leave most of 132 multiprocessors a program.

    128 columns where 64 would make more than two programs per multiprocessor: the rest would start when all others
    are done. Wide inputs take more warps: with 8 the search over 11008 entries spilled registers.
    """
    if (n, outputs) in TABLE:
        return TABLE[n, outputs]
    if n <= 8192 and triton.cdiv(outputs, 64) > 264:
        return GemvConfig(128)
    columns = _columns(outputs)
    return GemvConfig(columns) if n <= 8192 else GemvConfig(min(columns, 32), 8, 16)


def _columns(outputs: int) -> int:
    """As many, up to 64, as leave most of 132 multiprocessors a program."""
    fitting = [columns for columns in (64, 32, 16) if triton.cdiv(outputs, columns) >= 112]
    return fitting[0] if fitting else 16
