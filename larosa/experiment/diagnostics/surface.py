"""The magnitudes of some tokens at a site as a surface over tokens and channels (the paper's Figure 1)."""

from __future__ import annotations

import torch
from torch import Tensor


def surface(z: Tensor, channels: int) -> list[list[float]]:
    """[T, C] magnitudes to 4 digits, C at most `channels`. z: [T, width]."""
    size = pooling(z.shape[1], channels)
    pieces = [piece.amax(dim=1) for piece in torch.split(z.float().abs(), size, dim=1)]
    return [[float(f"{pieces[c][t]:.4g}") for c in range(len(pieces))] for t in range(len(z))]


def pooling(width: int, channels: int) -> int:
    """Neighbouring channels of which one point of the surface shows the largest magnitude."""
    return -(-width // channels)
