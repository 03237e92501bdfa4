"""Calibrated thresholds: an entry stays where its magnitude exceeds a constant (TEAL, CATS).

The number of zeros then varies from token to token and from text to text; records carry its spread.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from larosa.inputs import check_floating


class ThresholdSparsification(nn.Module):
    """Keeps what exceeds `limit` in magnitude. Args: `width` channels, `limit` >= 0 in the activation's unit."""

    def __init__(self, width: int, limit: float) -> None:
        super().__init__()
        if not limit >= 0.0:
            raise ValueError(f"a threshold is a number of at least 0, got {limit}")
        self.width, self.limit = width, limit

    def threshold(self, x: Tensor) -> Tensor | None:
        """The limit, for every row, [..., 1]."""
        return torch.full_like(x[..., :1], self.limit)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width] floating; returns the same shape and dtype, dropped entries zero.

        Raises ActivationError for another dtype, ValueError for another width.
        """
        check_floating(x)
        if x.shape[-1] != self.width:
            raise ValueError(f"expected {self.width} channels, got {x.shape[-1]}")
        return x * (x.abs() > self.limit)
