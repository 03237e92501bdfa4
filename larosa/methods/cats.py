"""CATS (arXiv 2404.08763): neurons of the MLP whose gate, SiLU(gate x), is small are skipped in up and down.

The gate projection stays dense, and so does attention. One threshold per layer: the quantile of |SiLU(gate x)| on
the calibration tokens. A dropped neuron leaves one row of up and one column of down unread, so the weight
sparsity reaches at most the share of up and down in the seven projections.
"""

from __future__ import annotations

from larosa.calibration.calibrator import Calibrator
from larosa.config.run import MethodConfig, ScheduleConfig, TokenPolicyConfig
from larosa.methods.base import Method
from larosa.models.architecture import SITES
from larosa.models.sites import ModelShape
from larosa.sparsity.handle import Plan
from larosa.sparsity.schedule import Levels, ScheduleError
from larosa.sparsity.top_k import kept_channels


class Cats(Method):
    """A threshold per layer on the gate of the MLP."""

    site_levels = False
    searched_schedules = False

    def levels(
        self, method: MethodConfig, shape: ModelShape, schedule: ScheduleConfig, sparsity: float, model_name: str
    ) -> Levels:
        """The neuron level that skips `sparsity` of the projection bytes; the schedule has no say.

        Raises ScheduleError with the reach where even all neurons are not enough.
        """
        width = shape.sites["h4"].width
        weights_per_channel = {**dict.fromkeys(SITES, 0), "h4": 2 * shape.hidden_size}
        reach = width * weights_per_channel["h4"] / shape.layer_weights
        neurons = sparsity / reach
        if kept_channels(min(neurons, 1.0), width) < 1:
            raise ScheduleError(
                f"method=cats skips up and down only, {100 * reach:.1f} % of this model's projection bytes: sparsity="
                f"{sparsity} is out of its reach, it must stay below {reach:.3f}"
            )
        level = {site: (neurons if site == "h4" else 0.0,) * shape.layers for site in SITES}
        kept = {site: (kept_channels(level[site][0], shape.sites[site].width),) * shape.layers for site in SITES}
        return Levels(sparsity, level, kept, "CATS: neurons of the MLP only", weights_per_channel)

    def plan(
        self,
        method: MethodConfig,
        shape: ModelShape,
        levels: Levels,
        token_policy: TokenPolicyConfig,
        calibrator: Calibrator,
    ) -> Plan:
        """A threshold on the gate of every layer."""
        histograms, neurons = calibrator.histograms(), levels.level["h4"]
        gate = tuple(histograms.magnitude_quantile(layer, "gate", neurons[layer]) for layer in range(shape.layers))
        return Plan(
            method, shape, levels, token_policy,
            rotation=None, thresholds={"gate": gate}, calibrated_in=method.coordinates,
        )  # fmt: skip
