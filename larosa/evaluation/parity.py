"""Parity check of every run: at level 0 the transformed model gives the logits of the dense model.

The bound on the relative error follows from rounding, to first order. Between two norms both models round
about 12 results (weights, sums, products), each by `u`, the dtype's unit roundoff; a product over K channels
adds `sqrt(K) u_acc` of its accumulator (float32 for half precisions). In a rotated basis such an error
spreads evenly over all channels, also over those that outliers dwarf, and the norm's weight gamma lets it
through with the amplification

    kappa = sqrt(D) rms(gamma) / ||gamma * x||,   x = h / rms(h),

which is measured on the dense model. Independent errors add in quadrature over the 2 L norms and the final
one. A wrong rotation, a forgotten gamma or a kept tie changes logits by order one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from larosa.errors import ParityError
from larosa.models.architecture import ModelView
from larosa.models.finite import EvaluationError, advice, unusable_weight

if TYPE_CHECKING:
    from larosa.sparsity.handle import SparsityHandle

ROUNDINGS = 2 * 12
LARGEST_BOUND = 0.3
"""Beyond this a half-precision model of great depth could hide a mistake behind its rounding."""


@dataclass(frozen=True)
class DenseReference:
    """The dense model on `ids` [N, T]: logits [N, T, vocabulary] float64, kappa of each norm."""

    ids: Tensor
    logits: Tensor
    kappa: list[float]


@torch.no_grad()
def logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Logits [N, T, vocabulary] float64 on the CPU. ids: [N, T]."""
    device = ModelView(model).embedding.weight.device
    output: Tensor = model(input_ids=ids.to(device), use_cache=False).logits
    return output.double().cpu()


def reference(model: PreTrainedModel, ids: Tensor) -> DenseReference:
    """Take the dense model's logits and the amplification of its norms on ids [N, T].

    Raises EvaluationError where the logits are not finite; it names the weight that is to blame.
    """
    view, kappa = ModelView(model), list[float]()

    def measure(norm: nn.Module, _args: Any, output: Tensor) -> None:
        gamma = norm.get_parameter("weight").double()
        size = output.double().pow(2).sum(-1).mean()
        kappa.append(float((gamma.pow(2).sum() / size).sqrt()))

    norms = [layer.norm(site) for layer in view.layers for site in ("h1", "h3")] + [view.final_norm]
    hooks = [norm.register_forward_hook(measure) for norm in norms]
    try:
        dense = logits(model, ids)
    finally:
        for hook in hooks:
            hook.remove()
    if not bool(dense.isfinite().all()):
        weight = unusable_weight(model)
        reason = f"its weight {weight} does too, take a sound checkpoint" if weight else advice(model.dtype)
        raise EvaluationError(f"the dense model's logits hold NaN or infinity: {reason}")
    return DenseReference(ids, dense, kappa)


def bound(dtype: torch.dtype, kappa: list[float], longest: int) -> float:
    """The largest relative logits error that rounding explains; `longest`: channels of the longest product."""
    unit = torch.finfo(dtype).eps / 2
    accumulator = torch.finfo(dtype if dtype == torch.float64 else torch.float32).eps / 2
    rounding = unit + math.sqrt(longest) * accumulator
    return rounding * math.sqrt(ROUNDINGS * sum(k * k for k in kappa))


def _blame(dtype: torch.dtype) -> str:
    if dtype in (torch.float32, torch.float64):
        return "the transformation is wrong"
    return "the transformation is wrong, or the precision too low for this model; try model.dtype=float32"


def check(model: PreTrainedModel, handle: SparsityHandle, dense: DenseReference) -> dict[str, Any]:
    """Compare level-0 logits with the dense ones.

    Raises ParityError where the relative error exceeds the bound or the logits are not finite.
    """
    with handle.level_zero():
        transformed = logits(model, dense.ids)
    if not bool(transformed.isfinite().all()):
        raise ParityError(
            "at level 0 the transformed model's logits hold NaN or infinity, the dense model's do not: "
            f"{advice(model.dtype)}"
        )
    error = float((transformed - dense.logits).norm() / dense.logits.norm())
    longest = max(site.width for site in handle.plan.shape.sites.values())
    allowed = min(bound(model.dtype, dense.kappa, longest), LARGEST_BOUND)
    if not error <= allowed:
        raise ParityError(
            f"at level 0 the transformed model's logits differ from the dense model's by {error:.2e} "
            f"(relative), rounding in {model.dtype} explains at most {allowed:.2e}: {_blame(model.dtype)}"
        )
    return {"relative_logits_error": error, "bound": allowed, "tokens": dense.ids.numel()}
