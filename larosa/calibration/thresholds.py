"""Thresholds in a plan's own coordinates: a calibrated threshold per site instead of Top-K.

The plan is applied at level 0 and the calibration tokens run through it, so the counted magnitudes are those
that the selector will rank, after any rotation or transform and times the importance of each channel. There are 256
bins per octave: a threshold is exact to 0.3 %.
"""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.calibration.statistics import CalibrationError
from larosa.data.tokens import TokenBlock
from larosa.models.architecture import ModelView
from larosa.sparsity.handle import Plan, apply
from larosa.sparsity.site import SparseSite

_PER_OCTAVE = 256
_LOWEST, _HIGHEST = -40, 24
_BINS = (_HIGHEST - _LOWEST) * _PER_OCTAVE


class MagnitudeCounter:
    """An observer of sparse sites that counts the ranked magnitudes in the site's own coordinates."""

    def __init__(self, counted: dict[str, Tensor] | None = None) -> None:
        """Empty, or from the tensors of :meth:`tensors`."""
        self._counts: dict[tuple[str, int], Tensor] = {}
        for name, counts in (counted or {}).items():
            site, layer = name.split(".")
            self._counts[site, int(layer)] = counts

    def tensors(self) -> dict[str, Tensor]:
        """The counts by `site.layer`, each [bins] int64 on the CPU."""
        return {f"{site}.{layer}": counts.cpu() for (site, layer), counts in self._counts.items()}

    def observe(self, site: SparseSite, _x: Tensor, _y: Tensor, z: Tensor, _z_sparse: Tensor) -> None:
        """Add the entries of z, [tokens, width]."""
        if not bool(z.isfinite().all()):
            raise CalibrationError(f"layer {site.layer}, {site.site}: the calibration activations hold NaN or infinity")
        octave = site.selector.ranked(z).float().abs().log2().clamp(_LOWEST, _HIGHEST - 1e-3)
        bins = ((octave - _LOWEST) * _PER_OCTAVE).reshape(-1)
        counts = torch.bincount(bins.long(), minlength=_BINS)
        key = (site.site, site.layer)
        self._counts[key] = counts if key not in self._counts else self._counts[key] + counts

    def threshold(self, layer: int, site: str, level: float) -> float:
        """The ranked magnitude below which a fraction `level` of the entries lies."""
        if level <= 0.0:
            return 0.0
        counts = self._counts[site, layer].double().cpu()
        cumulative = counts.cumsum(0) / counts.sum()
        position = int(torch.searchsorted(cumulative, level).clamp(max=_BINS - 1))
        below = float(cumulative[position - 1]) if position else 0.0
        inside = (level - below) / max(float(cumulative[position]) - below, 1e-300)
        return float(2.0 ** (_LOWEST + (position + min(inside, 1.0)) / _PER_OCTAVE))


@torch.no_grad()
def count_magnitudes(model: PreTrainedModel, plan: Plan, tokens: TokenBlock, batch_size: int) -> MagnitudeCounter:
    """Count the magnitudes that the selectors of `plan` see on the calibration tokens, with nothing dropped."""
    counter, decoder = MagnitudeCounter(), ModelView(model).decoder
    device = ModelView(model).embedding.weight.device
    with apply(model, plan) as handle, handle.level_zero(), handle.observed_by(counter):
        for batch in tqdm(torch.split(tokens.ids, batch_size), desc="thresholds", unit="batch", leave=False):
            decoder(input_ids=batch.to(device), use_cache=False)
    return counter
