"""Matrices of 4-bit codes as the sparse product reads them: input-major, two codes a byte, rows of whole groups.

weight [n, 32 ceil(m / 64)] uint8: byte j of a row holds outputs 2j (low half) and 2j + 1, code + 8; what fills the last
group is never seen. scale [ceil(m / 64), n] bfloat16: weight = code * scale of its 64 outputs. Scales lie by group, not
by row, so that a program, which owns outputs of one group, reads those of neighbouring rows side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

GROUP = 64
"""Outputs of a row that share a scale."""
_ZERO = 8


def pack_codes(codes: Tensor) -> Tensor:
    """codes [n, m] int8, -8 .. 7 -> [n, 32 ceil(m / 64)] uint8."""
    if codes.dim() != 2 or codes.dtype != torch.int8:
        raise ValueError(f"codes: expected [n, m] of int8, got {list(codes.shape)} of {codes.dtype}")
    if codes.numel() and not -_ZERO <= int(codes.min()) <= int(codes.max()) < _ZERO:
        raise ValueError(f"codes: expected -8 to 7, got {int(codes.min())} to {int(codes.max())}")
    shifted = functional.pad(codes + _ZERO, (0, -codes.shape[1] % GROUP), value=_ZERO).to(torch.uint8)
    return (shifted[:, 0::2] | (shifted[:, 1::2] << 4)).contiguous()


def unpack_codes(packed: Tensor, m: int) -> Tensor:
    """The codes [n, m] int8 in `packed`."""
    both = torch.stack([packed & 15, packed >> 4], -1).flatten(1)
    return both[:, :m].to(torch.int8) - _ZERO


def unpacked(packed: Tensor, scale: Tensor, m: int) -> Tensor:
    """The weights [n, m] float32."""
    return unpack_codes(packed, m).float() * scale.float().repeat_interleave(GROUP, 0)[:m].T
