"""Statistics of the calibration tokens that methods use, computed once and cached under an identity each.

The identity has the model's fingerprint and precision and the tokens' hash, but not the method or the level. So one
calibration serves every run that needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.calibration.dropped import dropped_means
from larosa.calibration.histograms import Histograms, histograms
from larosa.calibration.statistics import ALL_CONSUMERS, WINA_CONSUMERS, second_moments, weight_moments, with_gamma
from larosa.calibration.thresholds import MagnitudeCounter, count_magnitudes
from larosa.config.method import MagnitudeConfig
from larosa.config.run import MethodConfig, ScheduleConfig, TokenPolicyConfig
from larosa.data import tensor_store
from larosa.data.tokens import TokenBlock
from larosa.models.architecture import SITES
from larosa.models.sites import ModelShape
from larosa.rotation.online import output_aware, split_gain
from larosa.rotation.rotation import Rotation, build_rotation, rotation_index
from larosa.search.site_errors import SiteErrors, site_errors
from larosa.search.tuning import TUNING_VERSION, Tuned, TunedBases, TunedTransforms, tune
from larosa.sparsity.handle import Plan
from larosa.sparsity.low_rank import LowRank, flat, truncated_svds, unflat
from larosa.sparsity.schedule import make_levels

_VERSION = 3  # raise when a cached tensor would be computed differently
_NEWER = {"importance_exponent", "bias_compensation"}  # settings without a part in older identities


@dataclass
class Calibrator:
    """The dense model with frozen weights, and its calibration tokens."""

    model: PreTrainedModel
    tokens: TokenBlock
    fingerprint: dict[str, str] | None
    """Identity of the weights in the cache; None: the cache is neither read nor written."""
    batch_size: int
    seed: int
    _counted: dict[str, MagnitudeCounter] = field(default_factory=dict, init=False, repr=False)

    def second_moments(self) -> Tensor:
        """[layers, 2, D, D] float32, without gamma; see calibration.statistics."""
        tensors = self._kept(
            "moments",
            {**self._identity(), "what": "second moments of normed inputs"},
            lambda: {"second_moments": second_moments(self.model, self.tokens, self.batch_size)},
        )
        return tensors["second_moments"]

    def histograms(self) -> Histograms:
        """Histograms of all four sites; see calibration.histograms."""

        def build() -> dict[str, Tensor]:
            by_tap = histograms(self.model, self.tokens, self.batch_size)
            return {"low": by_tap.low, "high": by_tap.high, "counts": by_tap.counts}

        tensors = self._kept("histograms", {**self._identity(), "what": "histograms of the four sites"}, build)
        return Histograms(tensors["low"], tensors["high"], tensors["counts"])

    def rotation(self, method: MethodConfig) -> Rotation:
        """The rotation of a method: in the absorbed form of the normed input without gamma, in the
        simulated form with gamma in it."""
        layers, D = self.model.config.num_hidden_layers, self.model.config.hidden_size

        def build() -> dict[str, Tensor]:
            moments = None
            if method.basis == "weight_svd":
                moments = weight_moments(self.model, WINA_CONSUMERS)
            elif method.basis == "pca":
                moments = self.second_moments()
                if method.form == "simulated":
                    moments = with_gamma(moments, self.model)
            elif method.basis == "learned":
                return {"matrices": self._learned(method)}
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
            identity |= {key: value for key, value in self._identity().items() if key not in ("tokens", "batch_size")}
        elif method.basis == "pca":
            identity |= self._identity() | {"gamma": method.form == "simulated"}
        elif method.tuning is not None:
            identity |= self._identity() | {"tuning": method.tuning.model_dump(mode="json"), "score": method.importance}
            identity |= _exponent(method)
            identity["tuning_version"] = TUNING_VERSION
        else:
            identity |= {"layers": layers, "D": D, "seed": self.seed, "version": _VERSION}
        tensors = self._kept("rotation", identity, build)
        return Rotation(tensors["matrices"], rotation_index(layers, method.granularity, method.group_size))

    def transforms(self, method: MethodConfig) -> Tensor:
        """[layers, 2, n, b, b] float64: the online transforms of h1 and h3, tuned if `method.tuning` is set."""
        identity = {**self._identity(), "what": "output-aware transforms", "block": method.block_size}

        def build() -> dict[str, Tensor]:
            moments, grams, device = self.second_moments(), weight_moments(self.model, ALL_CONSUMERS), self.model.device
            rows = []
            for moment, gram in tqdm(
                zip(moments, grams, strict=True), desc="transforms", total=len(grams), leave=False
            ):
                pair = zip(moment.to(device), gram.to(device), strict=True)
                rows.append(torch.stack([output_aware(S, G, method.block_size).cpu() for S, G in pair]))
            return {"matrices": torch.stack(rows)}

        tensors = self._kept("transforms", identity, build)
        if method.tuning is None:
            return tensors["matrices"]
        start, gain = split_gain(tensors["matrices"])
        tuned_identity = identity | {"tuning": method.tuning.model_dump(mode="json"), "storage": method.transform_dtype}
        tuned_identity["tuning_version"] = TUNING_VERSION

        def tuned() -> dict[str, Tensor]:
            blocks = TunedTransforms(start, gain, method.transform_dtype, self.model.device)
            return {"matrices": self._tune(method, blocks)}

        tensors = self._kept("transforms", tuned_identity, tuned)
        return tensors["matrices"]

    def _learned(self, method: MethodConfig) -> Tensor:
        """[M, D, D] float64: orthogonal bases tuned from the identity."""
        layers, D = self.model.config.num_hidden_layers, self.model.config.hidden_size
        index = rotation_index(layers, method.granularity, method.group_size)
        count = max(max(pair) for pair in index) + 1
        start = Rotation(torch.eye(D, dtype=torch.float64).repeat(count, 1, 1), index)
        grams = weight_moments(self.model, ALL_CONSUMERS) if method.norm_exponent else None
        return self._tune(method, TunedBases(start, grams, self.model.device, method.norm_exponent))

    def _tune(self, method: MethodConfig, tuned: Tuned) -> Tensor:
        config, shape = method.tuning, ModelShape.of(self.model.config)
        assert config is not None  # the schema has checked it
        schedule = ScheduleConfig(
            name="tuning",
            kind="coefficients",
            coefficients=config.coefficients,
            table={},
            path=None,
            metric="weight_bytes",
        )
        levels = make_levels(shape, schedule, config.sparsity, "tuning")
        # Strict ties would wait for the GPU at every site.
        plain = MagnitudeConfig(
            name="magnitude", preset="magnitude", selector="top_k", ties="keep", rounding="nearest",
            bias_compensation="none",
        )  # fmt: skip
        tokens = TokenPolicyConfig(kind="all", n=0, fraction=1.0)
        grams = weight_moments(self.model, ALL_CONSUMERS) if config.objective == "output_error" else None
        return tune(self.model, tuned, Plan(plain, shape, levels, tokens, None), self.tokens, config, grams, self.seed)

    def with_thresholds(self, plan: Plan) -> Plan:
        """The plan with calibrated thresholds instead of Top-K, if its method selects by threshold."""
        if plan.method.selector != "threshold":
            return plan
        counter, levels = self.magnitudes(plan), plan.levels.level
        layers = range(plan.shape.layers)
        thresholds = {site: tuple(counter.threshold(i, site, levels[site][i]) for i in layers) for site in SITES}
        return replace(plan, thresholds=thresholds, calibrated_in=plan.method.coordinates)

    def with_compensation(self, plan: Plan) -> Plan:
        """The plan, complete but for this, with the means of what it drops if its method adds them as biases."""
        if plan.method.bias_compensation != "mean":
            return plan
        identity = {
            "what": "means of dropped entries",
            "method": plan.method.model_dump(mode="json", exclude={"preset", "bias_compensation"}),
            "levels": [plan.levels.level, plan.levels.kept],
            "sparse_tokens": plan.token_policy.model_dump(mode="json"),
            "tuning_version": TUNING_VERSION if plan.method.tuning else None,
        }
        means = self._kept(
            "dropped_means",
            self._identity() | identity,
            lambda: dropped_means(self.model, _uncompensated(plan), self.tokens, self.batch_size),
        )
        return replace(plan, dropped_mean=means)

    def magnitudes(self, plan: Plan) -> MagnitudeCounter:
        """Counted ranked magnitudes in the plan's coordinates; one pass per method and token policy."""
        identity: dict[str, Any] = {
            "what": "magnitudes",
            "method": plan.method.model_dump(mode="json", exclude={"preset", "selector", *_NEWER}),
            "sparse_tokens": plan.token_policy.model_dump(mode="json"),
            "tuning_version": TUNING_VERSION if plan.method.tuning else None,
        }
        if plan.method.importance != "magnitude":  # earlier versions counted |z| there, without the importance
            identity |= {"ranked_by": plan.method.importance, **_exponent(plan.method)}
        key = tensor_store.digest(identity)
        if key not in self._counted:
            tensors = self._kept(
                "magnitudes",
                self._identity() | identity,
                lambda: count_magnitudes(self.model, _uncompensated(plan), self.tokens, self.batch_size).tensors(),
            )
            self._counted[key] = MagnitudeCounter(tensors)
        return self._counted[key]

    def low_rank(self, ratio: float) -> LowRank:
        """A low-rank pair with `ratio` of the weights per projection, in its dtype; see sparsity.low_rank."""

        def build() -> dict[str, Tensor]:
            return flat(truncated_svds(self.model, ratio))

        identity = {**self._identity(), "what": "truncated SVDs of the projections", "share": ratio}
        del identity["tokens"], identity["batch_size"]  # it depends on the weights only
        tensors = self._kept("low_rank", identity, build)
        return unflat(tensors)

    def site_errors(self, plans: list[Plan]) -> list[SiteErrors]:
        """Per plan, the output errors of its sites on the calibration tokens of the dense model."""
        return [site_errors(self.model, plan, self.tokens, self.batch_size) for plan in plans]

    def error_curves(self, identity: dict[str, Any], build: Callable[[], tensor_store.Tensors]) -> tensor_store.Tensors:
        """The error curves of a search for levels; `identity` is that of the search."""
        shared = {**self._identity(), "what": "error curves", "tuning_version": TUNING_VERSION}
        return self._kept("curves", shared | identity, build)

    def _kept(
        self, kind: str, identity: dict[str, Any], build: Callable[[], tensor_store.Tensors]
    ) -> tensor_store.Tensors:
        """The tensors of `build`, from the cache if they are there."""
        return build() if self.fingerprint is None else tensor_store.cached(kind, identity, build)[0]

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


def _uncompensated(plan: Plan) -> Plan:
    """The plan before its biases are known."""
    return replace(plan, method=plan.method.model_copy(update={"bias_compensation": "none"}), dropped_mean=None)


def _exponent(method: MethodConfig) -> dict[str, float]:
    """The part of an identity that tells the exponent of column norms, where it is not 1."""
    return {} if method.importance_exponent == 1.0 else {"importance_exponent": method.importance_exponent}
