"""What a quantised weight must look like. `sparse_gemv` and `fused_sparse_gemv` take one in the place of a bf16 weight.

Formats: int8 [n, m] with scale [m] fp32; packed 4 bits, uint8 [n, 128 blocks] with scale [blocks, n, 4] bf16.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from larosa_kernels.common.checks import expect
from larosa_kernels.ops.sparse_gemv_quantised.packing import BLOCK, GROUP, block_count

QUANTISED = (torch.int8, torch.uint8)
_LEAST_SCALE = 1e-30
"""A bound of the scales is never taken smaller, so that no entry divided by it overflows."""


def out_features_of(weight: Tensor, out_features: int | None) -> int:
    """Columns of a weight [n, ...]. Raises ValueError unless they are given for a packed weight, and only for one."""
    if (weight.dtype == torch.uint8) != (out_features is not None):
        raise ValueError(f"out_features goes with a uint8 weight, and only with one: weight is {weight.dtype}")
    return weight.shape[1] if out_features is None else out_features


def check_scale(weight: Tensor, scale: Tensor | None, out_features: int, paired: bool) -> None:
    """Raise ValueError or TypeError unless a quantised weight [n, ...] has its scale, and any other weight has none."""
    if (weight.dtype in QUANTISED) != (scale is not None):
        raise ValueError(f"scale goes with an int8 or uint8 weight, and only with one: weight is {weight.dtype}")
    if scale is not None and weight.dtype == torch.uint8:
        expect("scale", scale, [block_count(out_features, paired), len(weight), 4], [torch.bfloat16], weight.device)
    elif scale is not None:
        expect("scale", scale, [out_features], [torch.float32], weight.device)


def stored_columns(weight: Tensor, out_features: int, paired: bool) -> int:
    """The width that `weight` must have. Raises ValueError where `paired` does not fit the weight."""
    packed = weight.dtype == torch.uint8
    if paired and not (packed and out_features % (2 * GROUP) == 0):
        raise ValueError(
            f"paired: expected a uint8 weight, gates and ups in groups of {GROUP}: {weight.dtype}, {out_features}"
        )
    return block_count(out_features, paired) * BLOCK // 2 if packed else out_features


def scale_bound(weight: Tensor, scale: Tensor | None, max_scale: float | None) -> float:
    """What no |scale| of a packed weight exceeds; 1 for other weights.

    None asks the GPU and waits for it, which torch.compile and CUDA graphs do not allow: ValueError there, and for a
    bound that is NaN or infinite.
    """
    if weight.dtype != torch.uint8 or scale is None:
        return 1.0
    if max_scale is None:
        if torch.compiler.is_compiling() or (scale.is_cuda and torch.cuda.is_current_stream_capturing()):
            raise ValueError("max_scale: expected a number inside torch.compile and CUDA graphs, got None")
        max_scale = float(scale.abs().max())
    if not max_scale < math.inf:
        raise ValueError(f"max_scale: expected a finite number, got {max_scale}")
    return max(max_scale, _LEAST_SCALE)
