"""The checks that the public pieces make of widths, matrices and activations, before torch fails in a product."""

from __future__ import annotations

import torch
from torch import Tensor

from larosa.errors import ArgumentError


def described(given: object) -> str:
    """Shape and dtype of a tensor, the type of anything else."""
    return f"{list(given.shape)} {given.dtype}" if isinstance(given, Tensor) else type(given).__name__


def check_activations(given: object, width: int, device: torch.device | None = None) -> None:
    """Raise ArgumentError unless `given` is a floating tensor [..., width] (on `device`, if one is named)."""
    if not isinstance(given, Tensor) or not given.is_floating_point() or given.shape[-1:] != (width,):
        raise ArgumentError(f"expected floating activations of width {width}, [..., {width}], got {described(given)}")
    if device is not None and given.device != device:
        raise ArgumentError(f"the activations are on {given.device}, the rotation is on {device}: move one of them")


def check_matrix(given: object, width: int | None = None) -> None:
    """Raise ArgumentError unless `given` is a floating matrix [width, width]; None: a square one."""
    square = isinstance(given, Tensor) and given.dim() == 2 and given.shape[0] == given.shape[1]
    if not isinstance(given, Tensor) or not square or not given.is_floating_point() or width not in (None, len(given)):
        size = "D" if width is None else width
        raise ArgumentError(f"expected a floating matrix [{size}, {size}], got {described(given)}")


def check_width(given: object) -> None:
    """Raise ArgumentError unless `given` is a number of channels."""
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise ArgumentError(f"a width is a whole number of channels, at least 1, got {given!r}")
