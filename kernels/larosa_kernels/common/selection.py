"""The selection bound, in torch: which entries of a vector are selected, as two integers per row.

bound: [B, 2] int32 = (threshold_bits, last_index). Entry i of row b is selected iff bits(|x_i|) > threshold_bits, or
they are equal and i <= last_index. bits() reads the bit pattern of a magnitude as an integer: for non-negative floats
of one dtype the order is the same. Top-K (LaRoSA eq. 5) finds the bound per token; a calibrated threshold is a bound
that is given.
"""

from __future__ import annotations

import torch
from torch import Tensor

from larosa_kernels.common.checks import INFINITY_BITS


def magnitude_bits(x: Tensor) -> Tensor:
    """|x| as its bit pattern, int32, in x's shape."""
    if x.dtype == torch.float32:
        return x.view(torch.int32) & 0x7FFFFFFF
    return x.view(torch.int16).to(torch.int32) & 0x7FFF


def selected_mask(x: Tensor, bound: Tensor) -> Tensor:
    """x: [B, n], bound: [B, 2] -> [B, n] bool, true where the entry is selected."""
    bits = magnitude_bits(x)
    index = torch.arange(x.shape[1], device=x.device)
    return (bits > bound[:, :1]) | ((bits == bound[:, :1]) & (index <= bound[:, 1:]))


def bound_of_all(rows: int, n: int, device: torch.device) -> Tensor:
    """The bound that selects every entry, [rows, 2]."""
    return torch.tensor([0, n], dtype=torch.int32, device=device).repeat(rows, 1)


def bound_from_threshold(threshold: float, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The bound [2] that selects |x| > threshold: the largest value of `dtype` that is <= threshold, without its ties.

    Raises ValueError for a threshold that is negative, infinite or NaN.
    """
    if not 0 <= threshold < float("inf"):
        raise ValueError(f"threshold: expected a finite number >= 0, got {threshold}")
    value = torch.tensor(threshold, dtype=torch.float64)
    bits = int(magnitude_bits(value.to(dtype).reshape(1)))
    if value.to(dtype).double() > value:
        bits -= 1
    return torch.tensor([min(bits, INFINITY_BITS[dtype]), -1], dtype=torch.int32, device=device)
