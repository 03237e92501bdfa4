"""Two grids for a matrix [n, m] (input-major: row i is what input i is multiplied with), rounded to nearest.

w8: `w_ij = c_ij s_j`, codes -127 .. 127, one float32 scale an output: a skipped input costs nothing.
w4: `w_ij = c_ij s_g`, codes -8 .. 7, one bfloat16 scale for 64 weights. The scale has a sign, so that the weight of the
largest magnitude has the code -8 and all 16 codes are of use. `output`: 64 outputs of one input share it, so a skipped
input takes its scales along; `input`: 64 inputs of one output do, as GPTQ and AWQ have it.

Codes are found for the scales as they are stored.
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
    """Weights cannot be put on the grid asked for."""


@dataclass(frozen=True)
class Quantised:
    """A matrix [n, m] on a grid. codes: int8 [n, m]; scale: w8 float32 [m], w4_out bfloat16 [groups of m, n],
    w4_in bfloat16 [groups of n, m]. A last group may be short."""

    scheme: str
    qweight: Tensor
    scale: Tensor

    def dense(self, dtype: torch.dtype) -> Tensor:
        """[n, m]: what the codes stand for; one rounding where `dtype` cannot hold it."""
        wide = self.qweight.to(torch.float64 if dtype == torch.float64 else torch.float32)
        return (wide * self.factor().to(wide.dtype)).to(dtype)

    def consumers(self, outputs: list[int], dtype: torch.dtype) -> list[Tensor]:
        """The same as weights [outputs, n] of linears whose outputs stand side by side."""
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
        """Bytes of codes and scales; two codes of w4 share a byte."""
        bits = 8 if self.scheme == "w8" else 4
        return (self.qweight.numel() * bits + 7) // 8 + self.scale.numel() * self.scale.element_size()


def quantised(matrix: Tensor, scheme: str) -> Quantised:
    """Round matrix [n, m] to nearest. Raises QuantizationError where it is not finite or the scheme is unknown."""
    if scheme not in SCHEMES:
        raise QuantizationError(f"scheme {scheme!r}: expected one of {', '.join(SCHEMES)}")
    if not bool(torch.isfinite(matrix).all()):
        raise QuantizationError("weights to be quantised hold a number that is not finite: check the model")
    wide = matrix.float()
    if scheme == "w8":
        return on_scales(wide, _not_zero(wide.abs().amax(0) / _LARGEST_W8))
    if scheme == "w4_in":
        codes, scale = _rounded_w4(wide.T)
        return Quantised(scheme, codes.T.contiguous(), scale.T.contiguous())
    codes, scale = _rounded_w4(wide)
    return Quantised(scheme, codes, scale.T.contiguous())


def on_scales(wide: Tensor, scale: Tensor) -> Quantised:
    """Float32 [n, m] to the nearest w8 codes of given scales [m]."""
    codes = (wide / scale).round().clamp(-_LARGEST_W8, _LARGEST_W8)
    return Quantised("w8", codes.to(torch.int8), scale)


def _rounded_w4(rows: Tensor) -> tuple[Tensor, Tensor]:
    """rows [r, c] in groups along c -> codes int8 [r, c], scales bfloat16 [r, groups of c]."""
    length = rows.shape[1]
    groups = functional.pad(rows, (0, -length % GROUP)).reshape(len(rows), -1, GROUP)
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = _not_zero((extreme / _LEAST_W4).bfloat16())
    codes = (groups / scale.float()).round().clamp(_LEAST_W4, -_LEAST_W4 - 1)
    return codes.flatten(1)[:, :length].to(torch.int8).contiguous(), scale.squeeze(-1)


def _not_zero(scale: Tensor) -> Tensor:
    """1 where all weights of a scale are zero, or too small for it."""
    return torch.where(scale == 0, torch.ones_like(scale), scale)
