"""Calibrated thresholds: an entry is kept where its magnitude exceeds a constant (TEAL, CATS).

With an importance, `|x_i|` times the importance of channel i is compared with the threshold (WAS, EMNLP 2025). The
number of zeros varies by token and text; records hold its spread.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from larosa.models.inputs import check_floating


class ThresholdSparsification(nn.Module):
    """Keeps what exceeds `threshold` in ranked magnitude. Args: `width` channels, `threshold` >= 0 in the unit of
    `|x_i| * importance_i`, `importance` [width] >= 0 or None for ones."""

    importance: Tensor | None

    def __init__(self, width: int, threshold: float, importance: Tensor | None = None) -> None:
        super().__init__()
        if not threshold >= 0.0:
            raise ValueError(f"a threshold is a number of at least 0, got {threshold}")
        self.width, self.threshold = width, threshold
        self.register_buffer("importance", importance, persistent=True)

    def ranked(self, x: Tensor) -> Tensor:
        """The tensor whose magnitudes are compared with the threshold. x: [..., width]."""
        return x if self.importance is None else x * self.importance

    def thresholds(self, x: Tensor) -> Tensor | None:
        """The threshold, for every row, [..., 1]."""
        return torch.full_like(x[..., :1], self.threshold)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width] floating; returns the same shape and dtype, dropped entries zero.

        Raises ActivationError for another dtype, ValueError for another width.
        """
        check_floating(x)
        if x.shape[-1] != self.width:
            raise ValueError(f"expected {self.width} channels, got {x.shape[-1]}")
        return x * (self.ranked(x).abs() > self.threshold)
