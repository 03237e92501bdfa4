"""Simulated rotations: a dense matrix product in front of a site's consumers and back, nothing absorbed."""

from __future__ import annotations

import torch

from larosa.models.architecture import LayerView
from larosa.rotation.rotation import LayerwiseRotationMatrix, Rotation


class SimulatedRotations:
    """The matrices of a rotation on the devices of the layers; layers that share a matrix share its copy.

    dtype: of the matrices; None takes that of each layer's weights.
    """

    def __init__(self, rotation: Rotation, dtype: torch.dtype | None) -> None:
        self._rotation, self._dtype = rotation, dtype
        self._made: dict[tuple[int, torch.device], LayerwiseRotationMatrix] = {}

    def at(self, layer: LayerView, site: str) -> LayerwiseRotationMatrix:
        """The matrix of a site, `h1` or `h3`, of a layer."""
        weight = layer.consumers(site)[0].weight
        key = (self._rotation.index[layer.index][0 if site == "h1" else 1], weight.device)
        if key not in self._made:
            matrix = self._rotation.at(layer.index, site).to(device=weight.device, dtype=self._dtype or weight.dtype)
            self._made[key] = LayerwiseRotationMatrix(weight.shape[1], matrix)
        return self._made[key]
