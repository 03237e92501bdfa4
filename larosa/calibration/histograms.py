"""Histograms of the dense model's activations at all four sites: TEAL (arXiv 2408.14690) computes thresholds from them.

As in TEAL's code: 10,000 equal bins between the 1 % and 99 % quantiles (of the first batch), with open tails.
Activations are not kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.calibration.statistics import CalibrationError
from larosa.data.tokens import TokenBlock
from larosa.models.architecture import SITES, ModelView

TAPS = (*SITES, "gate")
"""The four sites, and SiLU(gate x) for CATS."""
BINS = 10_000
TAIL = 0.01
_SAMPLE = 1_000_000


@dataclass
class Histograms:
    """`low`, `high` [layers, 5]: the edges of the bins of each of TAPS; `counts` [layers, 5, BINS + 2] with tails."""

    low: Tensor
    high: Tensor
    counts: Tensor

    def threshold(self, layer: int, site: str, level: float) -> float:
        """TEAL's `icdf(0.5 + level / 2)`, linear within a bin; 0 at level 0 for any median.

        Raises CalibrationError within the open tail.
        """
        if level <= 0.0:
            return 0.0
        index, wanted = TAPS.index(site), 0.5 + level / 2
        counts = self.counts[layer, index].double()
        cumulative = counts.cumsum(0) / counts.sum()
        position = int(torch.searchsorted(cumulative, wanted))
        if position == 0 or position > BINS:
            raise CalibrationError(
                f"layer {layer}, {site}: level {level:.3f} lies in the histogram's open tail, so it has no "
                "threshold; lower the level or choose another schedule"
            )
        below = float(cumulative[position - 1])
        inside = (wanted - below) / max(float(cumulative[position]) - below, 1e-300)
        low, high = float(self.low[layer, index]), float(self.high[layer, index])
        return max(0.0, low + (position - 1 + inside) * (high - low) / BINS)

    def magnitude_quantile(self, layer: int, site: str, level: float) -> float:
        """The magnitude below which a fraction `level` of the values lies, to a bin; the tails lie above all bins."""
        index = TAPS.index(site)
        low, high = float(self.low[layer, index]), float(self.high[layer, index])
        edges = torch.linspace(low, high, BINS + 1, dtype=torch.float64)
        magnitude = torch.maximum(edges[1:].abs(), edges[:-1].abs())
        order = magnitude.argsort()
        counts = self.counts[layer, index].double()
        cumulative = counts[1:-1][order].cumsum(0) / counts.sum()
        position = int(torch.searchsorted(cumulative, level))
        if position >= BINS:
            raise CalibrationError(
                f"layer {layer}, {site}: level {level:.3f} lies in the histogram's open tails, so it has no threshold"
            )
        return float(magnitude[order[position]]) if level > 0 else 0.0


@torch.no_grad()
def histograms(model: PreTrainedModel, tokens: TokenBlock, batch_size: int) -> Histograms:
    """Run the dense model over the calibration tokens and count what passes each of TAPS.

    Raises CalibrationError on NaN or infinity.
    """
    view = ModelView(model)
    shape = (len(view.layers), len(TAPS))
    by_tap = Histograms(torch.zeros(shape), torch.zeros(shape), torch.zeros(*shape, BINS + 2, dtype=torch.int64))
    seen: set[tuple[int, str]] = set()

    def collect(layer: int, site: str, x: Tensor) -> None:
        index, values = TAPS.index(site), x.detach().float().reshape(-1)
        if not bool(values.isfinite().all()):
            raise CalibrationError(f"layer {layer}, {site}: the calibration activations hold NaN or infinity")
        if (layer, site) not in seen:
            seen.add((layer, site))
            stride = -(-values.numel() // _SAMPLE)
            ends = values[::stride].quantile(torch.tensor([TAIL, 1 - TAIL], device=values.device))
            by_tap.low[layer, index], by_tap.high[layer, index] = ends.cpu()
        low, high = float(by_tap.low[layer, index]), float(by_tap.high[layer, index])
        width = max((high - low) / BINS, 1e-30)
        bins = ((values - low) / width).floor().clamp_(-1, BINS).long() + 1
        by_tap.counts[layer, index] += torch.bincount(bins, minlength=BINS + 2).cpu()

    hooks = []
    for layer, site in view.sites():
        consumer = layer.consumers(site)[0]
        hooks.append(
            consumer.register_forward_pre_hook(lambda _m, args, at=layer.index, site=site: collect(at, site, args[0]))
        )
    for layer in view.layers:
        hooks.append(layer.gate().register_forward_hook(lambda _m, _a, y, at=layer.index: collect(at, "gate", y)))
    device = view.embedding.weight.device
    try:
        for batch in tqdm(torch.split(tokens.ids, batch_size), desc="histograms", unit="batch", leave=False):
            view.decoder(input_ids=batch.to(device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return by_tap
