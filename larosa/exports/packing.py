"""Quantised matrices as tensors of a file: int8 as it is, two 4-bit integers in a byte."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from larosa.models.formats import GROUP, Quantised

_ZERO = 8
"""Added to 4-bit integers, -8 to 7, in their bytes."""


def pack(place: str, matrix: Quantised) -> dict[str, Tensor]:
    """The tensors of a quantised matrix, named after `place`."""
    qweight = matrix.qweight
    if matrix.scheme != "w8":
        nibbles = (qweight.flatten().to(torch.int16) + _ZERO).to(torch.uint8)
        nibbles = torch.nn.functional.pad(nibbles, (0, len(nibbles) % 2)).view(-1, 2)
        qweight = nibbles[:, 0] | (nibbles[:, 1] << 4)
    return {f"{place}.qweight": qweight, f"{place}.scale": matrix.scale}


def unpack(place: str, scheme: str, shape: tuple[int, int], held: Mapping[str, Tensor]) -> Quantised:
    """The matrix [n, m] of `shape` that :func:`pack` stored at `place`."""
    qweight = held[f"{place}.qweight"]
    if scheme != "w8":
        nibbles = torch.stack([qweight & 15, qweight >> 4], -1).flatten()[: shape[0] * shape[1]]
        qweight = (nibbles.to(torch.int8) - _ZERO).view(shape)
    return Quantised(scheme, qweight, held[f"{place}.scale"])


def stored_shapes(place: str, scheme: str, n: int, m: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> shape and safetensors' dtype of the tensors of a matrix [n, m]."""
    groups = {"w8": (m,), "w4_out": (-(-m // GROUP), n), "w4_in": (-(-n // GROUP), m)}[scheme]
    qweight = ((n, m), "I8") if scheme == "w8" else (((n * m + 1) // 2,), "U8")
    return {f"{place}.qweight": qweight, f"{place}.scale": (groups, "F32" if scheme == "w8" else "BF16")}
