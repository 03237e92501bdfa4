"""Formats of quantised weights for a matrix [n, m] (input-major: row i holds the weights of input i), round to nearest.

w8: `w_ij = q_ij s_j`, integers -127 .. 127, one float32 scale per output. A skipped input saves all of its weights.
w4: `w_ij = q_ij s_g`, integers -8 .. 7, one bfloat16 scale per group of 64 weights. The scale is signed, so that the
weight of the largest magnitude is -8 and all 16 integers are used.
w4_out: 64 outputs of one input share a scale, so a skipped input saves its scales too.
w4_in: 64 inputs of one output share a scale, as in GPTQ and AWQ.

Integers are rounded with the scales as stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from larosa.errors import LarosaError

GROUP = 64
"""Weights that share a w4 scale."""
SCHEMES = ("w8", "w4_out", "w4_in")
_LARGEST_W8 = 127
_LEAST_W4 = -8


class QuantizationError(LarosaError):
    """Weights cannot be quantised to this format."""


@dataclass(frozen=True)
class Quantised:
    """A quantised matrix [n, m]. qweight: int8 [n, m]; scale: w8 float32 [m], w4_out bfloat16 [groups of m, n],
    w4_in bfloat16 [groups of n, m]. A last group may be short."""

    scheme: str
    qweight: Tensor
    scale: Tensor

    def to(self, device: torch.device) -> Quantised:
        """The same matrix on `device`."""
        return Quantised(self.scheme, self.qweight.to(device), self.scale.to(device))

    def dense(self, dtype: torch.dtype) -> Tensor:
        """[n, m] dequantised; rounded once where `dtype` cannot represent the product."""
        wide = self.qweight.to(torch.float64 if dtype == torch.float64 else torch.float32)
        return (wide * self.factor().to(wide.dtype)).to(dtype)

    def consumers(self, outputs: list[int], dtype: torch.dtype) -> list[Tensor]:
        """Dequantised weights [outputs, n] of the linears whose outputs the matrix concatenates."""
        return [each.contiguous() for each in torch.split(self.dense(dtype).T, outputs)]

    def factor(self) -> Tensor:
        """The scale of each weight, [n, m] or [1, m]."""
        n, m = self.qweight.shape
        if self.scheme == "w8":
            return self.scale[None]
        if self.scheme == "w4_out":
            return self.scale.repeat_interleave(GROUP, 0)[:m].T
        return self.scale.repeat_interleave(GROUP, 0)[:n]

    @property
    def stored_bytes(self) -> int:
        """Bytes of quantised weights and scales; two w4 weights share a byte."""
        bits = 8 if self.scheme == "w8" else 4
        return (self.qweight.numel() * bits + 7) // 8 + self.scale.numel() * self.scale.element_size()


def quantised(matrix: Tensor, scheme: str) -> Quantised:
    """Round matrix [n, m] to nearest. Raises QuantizationError where it is not finite or the scheme is unknown."""
    if scheme not in SCHEMES:
        raise QuantizationError(f"scheme {scheme!r}: expected one of {', '.join(SCHEMES)}")
    if not bool(torch.isfinite(matrix).all()):
        raise QuantizationError("weights to be quantised hold NaN or infinity: check the model")
    wide = matrix.float()
    if scheme == "w8":
        return on_scales(wide, _not_zero(wide.abs().amax(0) / _LARGEST_W8))
    if scheme == "w4_in":
        qweight, scale = _rounded_w4(wide.T)
        return Quantised(scheme, qweight.T.contiguous(), scale.T.contiguous())
    qweight, scale = _rounded_w4(wide)
    return Quantised(scheme, qweight, scale.T.contiguous())


def on_scales(wide: Tensor, scale: Tensor) -> Quantised:
    """Float32 [n, m] to the nearest w8 integers at given scales [m]."""
    qweight = (wide / scale).round().clamp(-_LARGEST_W8, _LARGEST_W8)
    return Quantised("w8", qweight.to(torch.int8), scale)


def _rounded_w4(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows [r, c] in groups along c -> qweight int8 [r, c], scales bfloat16 [r, groups of c]."""
    length = rows.shape[1]
    groups = functional.pad(rows, (0, -length % GROUP)).reshape(len(rows), -1, GROUP)
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = _not_zero((extreme / _LEAST_W4).bfloat16())
    qweight = (groups / scale.float()).round().clamp(_LEAST_W4, -_LEAST_W4 - 1)
    return qweight.flatten(1)[:, :length].to(torch.int8).contiguous(), scale.squeeze(-1)


def _not_zero(scale: Tensor) -> Tensor:
    """1 where all weights of a scale are zero, or too small for it."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)
