"""What methods may ask of the calibration tokens, computed once and cached by its own identity.

The identity holds the model's fingerprint and precision and the tokens' hash, not the method or the level, so
one calibration serves every run that needs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa import store
from larosa.architecture import SITES
from larosa.calibration.histograms import Histograms, histograms
from larosa.calibration.limits import MagnitudeCounter, count_magnitudes
from larosa.calibration.statistics import ALL_READERS, WINA_READERS, second_moments, weight_moments, with_gamma
from larosa.calibration.tokens import TokenBlock
from larosa.config import MethodConfig
from larosa.rotation.explicit import output_aware
from larosa.rotation.rotation import Rotation, build_rotation, rotation_index
from larosa.sparsity.handle import Plan

_VERSION = 1  # raise when the meaning of a cached tensor changes


@dataclass
class Calibrator:
    """The dense model beside its calibration tokens."""

    model: PreTrainedModel
    tokens: TokenBlock
    fingerprint: dict[str, str]
    batch_size: int
    seed: int
    _counted: dict[str, MagnitudeCounter] = field(default_factory=dict, init=False, repr=False)

    def second_moments(self) -> Tensor:
        """[layers, 2, D, D] float32, gamma left out; see calibration.statistics."""
        tensors, _ = store.cached(
            "moments",
            {**self._identity(), "what": "second moments of normed inputs"},
            lambda: {"second_moments": second_moments(self.model, self.tokens, self.batch_size)},
        )
        return tensors["second_moments"]

    def histograms(self) -> Histograms:
        """Histograms of all four sites; see calibration.histograms."""

        def build() -> dict[str, Tensor]:
            found = histograms(self.model, self.tokens, self.batch_size)
            return {"low": found.low, "high": found.high, "counts": found.counts}

        tensors, _ = store.cached("histograms", {**self._identity(), "what": "histograms of the four sites"}, build)
        return Histograms(tensors["low"], tensors["high"], tensors["counts"])

    def rotation(self, method: MethodConfig) -> Rotation:
        """The rotation of a method: in the absorbed form of the normed input without gamma, in the
        simulated form with gamma in it."""
        layers, D = self.model.config.num_hidden_layers, self.model.config.hidden_size

        def build() -> dict[str, Tensor]:
            moments = None
            if method.basis == "weight_svd":
                moments = weight_moments(self.model, WINA_READERS)
            elif method.basis == "pca":
                moments = self.second_moments()
                if method.form == "simulated":
                    moments = with_gamma(moments, self.model)
            return {"matrices": build_rotation(method, moments, layers, D, self.seed, self.model.device).matrices}

        if method.basis == "identity":
            return build_rotation(method, None, layers, D, self.seed)
        size = method.group_size if method.granularity == "group" else 0
        identity: dict[str, Any] = {
            "what": "rotation",
            "basis": method.basis,
            "granularity": method.granularity,
            "group_size": size,
        }
        if method.basis == "weight_svd":
            identity |= {"model": self.fingerprint, "seed": self.seed, "version": _VERSION}
        elif method.basis == "pca":
            identity |= self._identity() | {"gamma": method.form == "simulated"}
        else:
            identity |= {"layers": layers, "D": D, "seed": self.seed, "version": _VERSION}
        tensors, _ = store.cached("rotation", identity, build)
        return Rotation(tensors["matrices"], rotation_index(layers, method.granularity, method.group_size))

    def transforms(self) -> Tensor:
        """[layers, 2, D, D] float64: the output-aware transforms of h1 and h3, see rotation.explicit."""

        def build() -> dict[str, Tensor]:
            moments, grams = self.second_moments(), weight_moments(self.model, ALL_READERS)
            matrices = torch.empty_like(grams)
            device = self.model.device
            for layer in tqdm(range(len(grams)), desc="transforms", unit="layer", leave=False):
                for i in range(2):
                    matrices[layer, i] = output_aware(moments[layer, i].to(device), grams[layer, i].to(device))
            return {"matrices": matrices}

        tensors, _ = store.cached("transforms", {**self._identity(), "what": "output-aware transforms"}, build)
        return tensors["matrices"]

    def limited(self, plan: Plan) -> Plan:
        """The plan with calibrated limits in the place of Top-K, if its method asks for them."""
        if plan.method.rule != "threshold":
            return plan
        counter, levels = self.magnitudes(plan), plan.levels.level
        layers = range(plan.shape.layers)
        limits = {site: tuple(counter.limit(i, site, levels[site][i]) for i in layers) for site in SITES}
        return replace(plan, thresholds=limits)

    def magnitudes(self, plan: Plan) -> MagnitudeCounter:
        """Counted magnitudes in the plan's coordinates, which its method decides; one pass a method."""
        key = plan.method.model_dump_json()
        if key not in self._counted:
            self._counted[key] = count_magnitudes(self.model, plan, self.tokens, self.batch_size)
        return self._counted[key]

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
