"""A plan, and a model that follows it.

A :class:`Plan` is pure data: which channels are kept at which site, in which basis, for which tokens.
:func:`apply` makes a model follow it and returns a handle; `remove()` restores the model bit for bit.

The model holds its handle, so :func:`handle_of` finds a handle that the caller dropped. Operations that would break a
sparse model are refused: see sparsity.guard (saving, copying, converting) and sparsity.calls (forward passes).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from larosa.config.quantization import QuantizationConfig
from larosa.config.run import MethodConfig, TokenPolicyConfig
from larosa.errors import LarosaError
from larosa.models.architecture import LayerView, ModelView
from larosa.models.formats import Quantised
from larosa.models.sites import ModelShape
from larosa.rotation.absorb import WeightSwaps, absorb, fold_transforms
from larosa.rotation.rotation import ResidualAdapter, Rotation
from larosa.rotation.simulated import SimulatedRotations
from larosa.sparsity.calls import CallCheck
from larosa.sparsity.compensation import BiasCompensation
from larosa.sparsity.guard import Guards
from larosa.sparsity.low_rank import LowRank, LowRankRemainder
from larosa.sparsity.schedule import Levels
from larosa.sparsity.site import Observer, Selector, SparseSite
from larosa.sparsity.threshold import ThresholdSparsification
from larosa.sparsity.token_policy import PROMPT_KINDS, TokenPolicy
from larosa.sparsity.top_k import TopKSparsification

_HANDLE = "_larosa_handle"
"""Where a sparse model keeps its handle. The two refer to each other: Python's cycle collector frees both."""


class PlanError(LarosaError):
    """A plan does not fit the model."""


class HandleError(LarosaError):
    """There is no handle, or it can no longer do this."""


@dataclass(frozen=True)
class Plan:
    """The decisions of a method for a model, before the model is changed."""

    method: MethodConfig
    shape: ModelShape
    levels: Levels
    token_policy: TokenPolicyConfig
    rotation: Rotation | None
    thresholds: dict[str, tuple[float, ...]] | None = None
    """Site -> a calibrated threshold per layer, instead of Top-K; or `gate` alone, for the neurons of the MLP."""
    calibrated_in: str | None = None
    """The coordinates (MethodConfig.coordinates) that the thresholds were calibrated in."""
    transforms: Tensor | None = None
    """[layers, 2, n, b, b] float64: online transforms of h1 and h3 in n diagonal blocks, exact;
    `method.transform_dtype` rounds them."""
    low_rank: LowRank | None = None
    """Low-rank pairs through which dropped entries still reach the site's consumers."""
    dropped_mean: dict[str, Tensor] | None = None
    """Site -> [layers, width] float32: E[x - S(x)], whose products with the weights are the biases of
    `method.bias_compensation=mean`."""


class SparsityHandle:
    """A model made sparse. Use as a context manager, or call `remove()`.

    In the absorbed form the residual stream is in the rotated basis: the embedding's output, the decoder's
    `last_hidden_state` (without the final norm's weight, which the head holds) and every parameter. `inputs_embeds` and
    `output_hidden_states` are refused there; plain, online and simulated forms take them. Threads may share a sparse
    model, but not `level_zero`, `observed_by` and the like, which change it for all.
    """

    def __init__(self, model: PreTrainedModel, plan: Plan, dense_weights_device: str) -> None:
        self.plan = plan
        self.sites: list[SparseSite] = []
        self.adapters: list[ResidualAdapter] = []
        self.policy = TokenPolicy(plan.token_policy)
        self.quantised: dict[tuple[int, str], Quantised] = {}
        """(layer, site) -> the quantised weights of its consumers, in the decoder's formats."""
        self.quantised_head: Quantised | None = None
        self.quantization: QuantizationConfig | None = None
        """How weights were quantised after the plan was applied; None where they were not."""
        self._model = model
        self._tied = bool(model.config.tie_word_embeddings)
        self._swaps = WeightSwaps(dense_weights_device)
        self._hooks: list[RemovableHandle] = []
        self._guards = Guards(model, lambda: self.remedy)

    @property
    def remedy(self) -> str:
        """How to get the dense model, for messages."""
        if self._swaps.discarded:
            return "its dense weights were discarded, so load the model again"
        return "call larosa.handle_of(model).remove() first, which restores the dense model"

    @property
    def kept_bytes(self) -> int:
        """Memory in bytes that the kept dense weights cost while the model is sparse."""
        return self._swaps.kept_bytes

    @property
    def adapter_bytes(self) -> int:
        """Bytes of all residual adapters, read for every token."""
        return sum(adapter.nbytes for adapter in self.adapters)

    @contextmanager
    def level_zero(self) -> Iterator[None]:
        """Within: the transformed model with nothing dropped, at every token; it must equal the dense one."""
        with ExitStack() as stack:
            stack.enter_context(self.policy.everywhere())
            for site in self.sites:
                stack.enter_context(site.dropping(False))
            yield

    @contextmanager
    def observed_by(self, observer: Observer) -> Iterator[None]:
        """Within: `observer` receives every activation that a site makes sparse."""
        for site in self.sites:
            site.observer = observer
        try:
            yield
        finally:
            for site in self.sites:
                site.observer = None

    def exchange(self, module: nn.Module, name: str, tensor: Tensor) -> None:
        """Replace a parameter by `tensor` until `remove()`."""
        self._swaps.swap(module, name, tensor)

    def untie(self) -> None:
        """Let the head have weights of its own until `remove()`."""
        self._model.config.tie_word_embeddings = False

    def dense_weights(self) -> dict[str, Tensor]:
        """Name -> the dense model's parameter, tied ones under each name, where they wait. Raises HandleError."""
        if self._swaps.discarded:
            raise HandleError(f"the dense weights cannot be read: {self.remedy}")
        parameters = dict(self._model.named_parameters(remove_duplicate=False))
        names = {module: name for name, module in self._model.named_modules()}
        for module, name, old in self._swaps.replaced():
            parameters[f"{names[module]}.{name}"] = old
        return {name: parameter.detach() for name, parameter in parameters.items()}

    @property
    def tied(self) -> bool:
        """Whether the dense model's head shares the embedding's weights."""
        return self._tied

    def discard(self) -> None:
        """Free the kept dense weights: `kept_bytes` becomes 0, and `remove()` is refused from now on.

        Leaving a `with` block then leaves the model sparse. Raises HandleError after `remove()`.
        """
        if vars(self._model).get(_HANDLE) is not self:
            raise HandleError("this handle's model is dense: there is nothing to discard")
        self._swaps.discard()

    def remove(self) -> None:
        """Restore the model: weights bit for bit, ties, configuration, no hook or guard left. Safe to call twice.

        Raises HandleError after `discard()`.
        """
        if self._swaps.discarded:
            raise HandleError(f"remove() cannot restore the dense model: {self.remedy}")
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._swaps.restore()
        if vars(self._model).get(_HANDLE) is self:
            self._model.config.tie_word_embeddings = self._tied
        self._guards.remove()

    def __enter__(self) -> SparsityHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._swaps.discarded:
            self.remove()

    def _guard(self) -> None:
        """Let the model know its handle, and refuse what would break it."""
        view, plan = ModelView(self._model), self.plan
        self._guards.replace(self._model, _HANDLE, self)
        self._guards.install()
        rotated = plan.method.form == "absorbed" and plan.rotation is not None
        model: Any = self._model
        checks: list[Any] = [CallCheck(model.config, rotated, lambda: self._swaps.frozen, lambda: self.remedy)]
        if plan.token_policy.kind != "all":
            checks.append(self.policy.hook)
        if plan.token_policy.kind in PROMPT_KINDS:
            generate = self.policy.generating(model.generate, model.generation_config)
            self._guards.replace(model, "generate", generate)
        self._hooks += [view.decoder.register_forward_pre_hook(check, with_kwargs=True) for check in checks]


def check_dense(model: nn.Module) -> None:
    """Raise PlanError for a sparse model: handles do not nest, the inner one's weights would outlive the outer's."""
    if _HANDLE in vars(model):
        raise PlanError(f"the model is sparse already: {handle_of(model).remedy}")


def handle_of(model: nn.Module) -> SparsityHandle:
    """The handle of a sparse model, also one that its caller has lost. Raises HandleError for a dense model."""
    handle = getattr(model, _HANDLE, None)
    if not isinstance(handle, SparsityHandle):
        raise HandleError(
            f"this {type(model).__name__} has no handle: it is dense, or a part of a sparse model; ask for the handle "
            "of the whole model that larosa.sparsify() was given"
        )
    return handle


def _importance(plan: Plan, layer: LayerView, site: str) -> Tensor | None:
    """[width], the L2 norms of the columns behind a site's channels to the power p; None where magnitudes rank."""
    exponent = plan.method.norm_exponent
    if exponent == 0.0:
        return None
    weight = layer.consumers(site)[0].weight
    squares = sum(linear.weight.double().pow(2).sum(0).to(weight.device) for linear in layer.consumers(site))
    return torch.as_tensor(squares).sqrt().pow(exponent).to(weight.dtype)


def _selector(plan: Plan, layer: LayerView, site: str) -> Selector:
    """The selector of a site; the model's rotations are absorbed already."""
    width, importance = plan.shape.sites[site].width, _importance(plan, layer, site)
    if plan.thresholds is not None:
        thresholds = plan.thresholds["gate" if "gate" in plan.thresholds else site]
        return ThresholdSparsification(width, thresholds[layer.index], importance)
    level = plan.levels.planned(site, layer.index, plan.shape)
    return TopKSparsification(width, level, plan.method.ties, importance)


def _low_rank(plan: Plan, layer: LayerView, site: str) -> LowRankRemainder | None:
    pairs = plan.low_rank[site][layer.index] if plan.low_rank is not None else ()
    return LowRankRemainder(layer.consumers(site), pairs) if pairs else None


def _compensation(plan: Plan, layer: LayerView, site: str) -> BiasCompensation | None:
    means = plan.dropped_mean
    return None if means is None else BiasCompensation(layer.consumers(site), means[site][layer.index])


@torch.no_grad()
def apply(model: PreTrainedModel, plan: Plan, dense_weights_device: str = "device") -> SparsityHandle:
    """Make `model` follow `plan`, in place.

    `dense_weights_device`: where the replaced dense weights are kept until `remove()`, `device` or `cpu`. Raises
    PlanError if the plan is for another model or the model follows one already.
    """
    if ModelShape.of(model.config) != plan.shape:
        raise PlanError("the plan was made for a model of another shape")
    if plan.thresholds is not None and plan.calibrated_in != plan.method.coordinates:
        raise PlanError(
            f"the thresholds were calibrated in {plan.calibrated_in or 'an unknown basis'}, the method drops entries in"
            f" {plan.method.coordinates}: calibrate them for this method"
        )
    if (plan.method.bias_compensation == "mean") != (plan.dropped_mean is not None):
        raise PlanError("method.bias_compensation=mean and the means of what is dropped go together: plan anew")
    check_dense(model)
    handle = SparsityHandle(model, plan, dense_weights_device)
    try:
        handle._guard()
        view = ModelView(model)
        rotation, form = plan.rotation, plan.method.form
        if form == "absorbed" and rotation is not None:
            handle.adapters, hooks = absorb(view, rotation, handle._swaps)
            handle._hooks += hooks
            handle.untie()
        transforms = {}
        if plan.transforms is not None:
            transforms = fold_transforms(view, plan.transforms, plan.method.transform_dtype, handle._swaps)
        simulated = None
        if form == "simulated" and rotation is not None:
            exact = plan.method.rotation_dtype == "float64"
            simulated = SimulatedRotations(rotation, torch.float64 if exact else None)
        gated = plan.thresholds is not None and "gate" in plan.thresholds
        for layer, site in view.sites():
            if gated and site != "h4":
                continue
            selector = _selector(plan, layer, site)
            rotated = simulated.at(layer, site) if simulated and site in ("h1", "h3") else None
            transform, low_rank = transforms.get((layer.index, site)), _low_rank(plan, layer, site)
            bias = _compensation(plan, layer, site)
            sparse = SparseSite(layer, site, selector, handle.policy, rotated, transform, low_rank, bias)
            handle._hooks += sparse.attach(layer, gated)
            handle.sites.append(sparse)
    except BaseException:
        handle.remove()
        raise
    return handle
