"""Matrices of the decoder, input-major [n, m]: tensors, or codes and scales as the sparse product reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from larosa_kernels.ops.sparse_gemv_quantised.packing import GROUP, dequantise, pack_qweight, pack_scales
from torch import Tensor

from larosa.decode.errors import DecodeError
from larosa.models.formats import Quantised


@dataclass(frozen=True)
class PackedMatrix:
    """weight: int8 [n, m] with scale [m] float32, or uint8, two codes a byte, with scale [blocks, n, 4] bfloat16
    (sparse_gemv_quantised/packing.py), paired where gates and ups alternate. largest_scale: no |scale| exceeds it."""

    weight: Tensor
    scale: Tensor
    outputs: int
    largest_scale: float
    paired: bool = False

    @classmethod
    def of(cls, matrix: Quantised, paired: bool = False) -> PackedMatrix:
        """The same codes in the decoder's layout; paired: of gates and ups, which 4-bit codes then alternate by groups.

        Raises DecodeError for groups along the input.
        """
        if matrix.scheme == "w4_in":
            raise DecodeError("the decoder runs w4 in groups along the output, not along the input")
        m = matrix.qweight.shape[1]
        if matrix.scheme != "w4_out":
            return cls(matrix.qweight.contiguous(), matrix.scale.contiguous(), m, 1.0)
        paired = paired and m % (2 * GROUP) == 0
        scale = pack_scales(matrix.scale, m, paired)
        return cls(pack_qweight(matrix.qweight, paired), scale, m, float(scale.abs().max()), paired)

    @property
    def shape(self) -> torch.Size:
        """(n, m)."""
        return torch.Size((len(self.weight), self.outputs))

    @property
    def around(self) -> dict[str, Any]:
        """What the sparse product is told besides the weight."""
        around: dict[str, Any] = {"scale": self.scale}
        if self.weight.dtype == torch.uint8:
            around |= {"out_features": self.outputs, "max_scale": self.largest_scale, "paired": self.paired}
        return around

    def dense(self, dtype: torch.dtype) -> Tensor:
        """[n, m] in `dtype`."""
        if self.weight.dtype == torch.uint8:
            return dequantise(self.weight, self.scale, self.outputs, self.paired).to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return (self.weight.to(wide) * self.scale.to(wide)).to(dtype)

    def __len__(self) -> int:
        return len(self.weight)


Matrix = Tensor | PackedMatrix


def dense(matrix: Matrix, dtype: torch.dtype) -> Tensor:
    """[n, m] in `dtype`."""
    return matrix.dense(dtype) if isinstance(matrix, PackedMatrix) else matrix.to(dtype)


def tensors(matrix: Matrix) -> list[Tensor]:
    """What is stored."""
    return [matrix.weight, matrix.scale] if isinstance(matrix, PackedMatrix) else [matrix]


def stored_bytes(matrix: Matrix) -> int:
    """Bytes of all of it."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(matrix))


def read_bytes(matrix: Matrix, share: float) -> int:
    """Bytes that a product reads which keeps `share` of the inputs; scales count whole: kept rows are everywhere."""
    rows, *scales = tensors(matrix)
    return round(share * stored_bytes(rows)) + sum(stored_bytes(scale) for scale in scales)
