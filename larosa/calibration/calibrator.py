"""What methods may ask of the calibration tokens, computed once and cached by its own identity.

The identity holds the model's fingerprint and precision and the tokens' hash, not the method or the level, so
one calibration serves every run that needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from larosa import store
from larosa.calibration.statistics import second_moments, with_gamma
from larosa.calibration.tokens import TokenBlock
from larosa.config import MethodConfig
from larosa.rotation.rotation import Rotation, build_rotation, rotation_index

_VERSION = 1  # raise when the meaning of a cached tensor changes


@dataclass
class Calibrator:
    """The dense model beside its calibration tokens."""

    model: PreTrainedModel
    tokens: TokenBlock
    fingerprint: dict[str, str]
    batch_size: int
    seed: int

    def second_moments(self) -> Tensor:
        """[layers, 2, D, D] float32, gamma left out; see calibration.statistics."""
        tensors, _ = store.cached(
            "moments",
            {**self._identity(), "what": "second moments of normed inputs"},
            lambda: {"second_moments": second_moments(self.model, self.tokens, self.batch_size)},
        )
        return tensors["second_moments"]

    def rotation(self, method: MethodConfig) -> Rotation:
        """The rotation of a method: in the absorbed form of the normed input without gamma, in the
        simulated form with gamma in it."""
        layers, D = self.model.config.num_hidden_layers, self.model.config.hidden_size

        def build() -> dict[str, Tensor]:
            moments = None
            if method.basis == "pca":
                moments = self.second_moments()
                if method.form == "simulated":
                    moments = with_gamma(moments, self.model)
            return {"matrices": build_rotation(method, moments, layers, D, self.seed, self.model.device).matrices}

        if method.basis == "identity":
            return build_rotation(method, None, layers, D, self.seed)
        size = method.group_size if method.granularity == "group" else 0
        identity = {
            "what": "rotation",
            "basis": method.basis,
            "granularity": method.granularity,
            "group_size": size,
        }
        if method.basis == "pca":
            identity |= self._identity() | {"gamma": method.form == "simulated"}
        else:
            identity |= {"layers": layers, "D": D, "seed": self.seed, "version": _VERSION}
        tensors, _ = store.cached("rotation", identity, build)
        return Rotation(tensors["matrices"], rotation_index(layers, method.granularity, method.group_size))

    def _identity(self) -> dict[str, Any]:
        return {
            "model": self.fingerprint,
            "dtype": str(self.model.dtype),
            "device": self.model.device.type,
            "seed": self.seed,  # random weights follow it
            "tokens": self.tokens.sha256,
            "batch_size": self.batch_size,
            "version": _VERSION,
        }
