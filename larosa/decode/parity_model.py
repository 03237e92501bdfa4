"""The decoder against the evaluated model: the transformers model that a handle made sparse.

* level 0: logits token by token, within the bound that rounding explains (evaluation.parity);
* the plan's levels, site by site on the evaluated model's own inputs: masks differ only where a magnitude is within one
  unit in the last place of the k-th (beyond what the two vectors differ by, which is itself bounded), and products of
  the same masked vector are within rounding;
* the whole: top-1 agreement and KL with the right tokens fed to both; the measured level is the plan's.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from larosa.decode import ops
from larosa.decode.decoder import Decoder, SiteEvent
from larosa.decode.parity import distance, levels, require, site_bound, stepped
from larosa.decode.selectors import Selectors, dense_selectors, selectors_of
from larosa.decode.weights import DecodeWeights
from larosa.errors import ParityError
from larosa.evaluation import parity
from larosa.models.architecture import SITES, ModelView
from larosa.sparsity.handle import SparsityHandle
from larosa.sparsity.site import SparseSite
from larosa.sparsity.top_k import TopKSparsification

_LEVEL_SLACK = 0.01
"""Of thresholds: shares of dropped entries on the same tokens, of two models that differ by rounding."""


@dataclass
class _Trace:
    """What the evaluated model showed at one site of one layer; rows are tokens."""

    before: Tensor | None = None
    read: Tensor | None = None
    """What the site's readers were given."""
    out: list[Tensor] = field(default_factory=list)
    """The readers' outputs."""
    z: Tensor | None = None
    z_sparse: Tensor | None = None


class _Traces:
    """Hooks and an observer that fill the traces of one forward pass."""

    def __init__(self, model: PreTrainedModel, handle: SparsityHandle) -> None:
        self.view, self.handle = ModelView(model), handle
        self.by_site = {(layer.index, site): _Trace() for layer, site in self.view.sites()}

    def observe(self, site: SparseSite, x: Tensor, _y: Tensor, z: Tensor, z_sparse: Tensor) -> None:
        trace = self.by_site[site.layer, site.site]
        trace.z, trace.z_sparse = z, z_sparse
        if site.site == "h2":
            trace.before = x

    def run(self, ids: Tensor) -> Tensor:
        """The logits [T, vocabulary] float64 of ids [T] at the plan's levels."""
        with ExitStack() as stack:
            for layer, site in self.view.sites():
                trace = self.by_site[layer.index, site]
                if site in ("h1", "h3"):
                    hook = layer.norm(site).register_forward_pre_hook(_keeps_before(trace))
                    stack.callback(hook.remove)
                for linear in layer.consumers(site):
                    stack.callback(linear.register_forward_hook(_keeps_product(trace)).remove)
            stack.enter_context(self.handle.policy.everywhere())
            stack.enter_context(self.handle.observed_by(self))
            logits = parity.logits(self.view.model, ids[None])[0]
        for i in range(len(self.view.layers)):
            h2, h4 = self.by_site[i, "h2"], self.by_site[i, "h4"]
            h2.before = h2.read if h2.before is None else h2.before
            h4.before = torch.cat(self.by_site[i, "h3"].out, -1)
        return logits


def _rows(x: Tensor) -> Tensor:
    return x.detach().reshape(-1, x.shape[-1])


def _keeps_before(trace: _Trace) -> Any:
    def hook(_norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        trace.before = _rows(args[0])

    return hook


def _keeps_product(trace: _Trace) -> Any:
    def hook(_linear: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        trace.read = _rows(args[0])
        trace.out.append(_rows(output))

    return hook


@torch.no_grad()
def check_model(
    model: PreTrainedModel,
    handle: SparsityHandle,
    weights: DecodeWeights,
    ids: Tensor,
    kappa: list[float] | None = None,
    **how: Any,
) -> dict[str, Any]:
    """Hold a decoder of `weights` against `model` on ids [T]; `how` goes to the decoder. Raises ParityError.

    kappa: the dense model's (parity.reference), else that of the model as it stands is measured.
    """
    ids = ids.to(weights.device)
    selectors = selectors_of(handle)
    report = {"against": "the evaluated model", "tokens": len(ids)}
    report |= _level_zero(model, handle, weights, ids, kappa, how)
    decoder = Decoder(weights, selectors, len(ids), **how)
    traces = _Traces(model, handle)
    evaluated = traces.run(ids)
    report |= {"backend": decoder.backend, "sites": _sites(decoder, traces)}
    report |= _agreement(stepped(decoder, ids), evaluated)
    report["achieved_sparsity"] = _measured(decoder, selectors, ids, traces)
    return report


def _level_zero(
    model: PreTrainedModel,
    handle: SparsityHandle,
    weights: DecodeWeights,
    ids: Tensor,
    kappa: list[float] | None,
    how: dict[str, Any],
) -> dict[str, float]:
    with handle.level_zero():
        dense = parity.reference(model, ids[None])
    decoder = Decoder(weights, dense_selectors(weights.shape), len(ids), **how)
    logits = stepped(decoder, ids)
    error = distance(logits.cpu(), dense.logits[0])
    longest = max(site.width for site in weights.shape.sites.values())
    allowed = min(parity.bound(weights.dtype, kappa or dense.kappa, longest), parity.LARGEST_BOUND)
    require("at level 0 the relative error of the logits", error, allowed)
    alike = {f"level_zero_{key}": value for key, value in _agreement(logits, dense.logits[0]).items()}
    return {"relative_logits_error": error, "bound": allowed} | alike


def _sites(decoder: Decoder, traces: _Traces) -> dict[str, Any]:
    sparse_sites = {(site.layer, site.site): site for site in traces.handle.sites}
    worst, flips, entries = {"vector": 0.0, "product": 0.0}, 0, 0
    for (layer, name), trace in traces.by_site.items():
        site, where = sparse_sites.get((layer, name)), f"layer {layer}, {name}"
        up = _score(sparse_sites.get((layer, "h4")))
        allowed = site_bound(decoder.weights.dtype, len(decoder.weights.layers[layer].matrices[name]))
        x, mask = _entered(decoder, layer, name, trace, up)
        ranked, given, kept = _shown(site, trace)
        if ranked is not None:
            worst["vector"] = max(worst["vector"], distance(x, ranked))
            require(f"{where}: the relative error of the vector", distance(x, ranked), allowed)
        flips += _flips(where, site, trace, x, ranked, mask, kept)
        entries += mask.numel()
        error = distance(_product(decoder, layer, name, given), _outputs(trace, name, up))
        worst["product"] = max(worst["product"], error)
        require(f"{where}: the relative error of the product", error, allowed)
    return {"worst_error": worst, "masks_differ_share": flips / entries}


def _score(site: SparseSite | None) -> Tensor | None:
    return getattr(site.selector, "importance", None) if site is not None else None


def _entered(decoder: Decoder, layer: int, name: str, trace: _Trace, up: Tensor | None) -> tuple[Tensor, Tensor]:
    """The decoder's vector and mask on the evaluated model's input, a token at a time as in a step."""
    before = trace.before
    assert before is not None
    if name == "h4" and up is not None:
        before = torch.cat([before[:, : len(up)], before[:, len(up) :] * up], -1)
    pairs = [decoder.enter(layer, name, row[None].contiguous(), decoder.backend) for row in before]
    return torch.cat([x for x, _ in pairs]), torch.cat([ops.selected_mask(x, keep) for x, keep in pairs])


def _shown(site: SparseSite | None, trace: _Trace) -> tuple[Tensor | None, Tensor, Tensor]:
    """Of the evaluated model: what its selector ranked (None behind a gate), the masked vector, the mask."""
    assert trace.read is not None
    if site is None:
        return trace.read, trace.read, torch.ones_like(trace.read, dtype=torch.bool)
    assert trace.z is not None
    assert trace.z_sparse is not None
    if site.gated:
        return None, trace.read, trace.z_sparse != 0
    score = _score(site)
    ranked, given = (trace.z, trace.z_sparse) if score is None else (trace.z * score, trace.z_sparse * score)
    return ranked.to(trace.read.dtype), given.to(trace.read.dtype), trace.z_sparse != 0


def _flips(
    where: str,
    site: SparseSite | None,
    trace: _Trace,
    x: Tensor,
    ranked: Tensor | None,
    mask: Tensor,
    kept: Tensor,
) -> int:
    """Entries on which the masks differ. Raises ParityError where one is not next to the threshold."""
    if site is None or trace.z is None:
        return 0
    differ = (mask != kept) & (x != 0) & (trace.z != 0) if ranked is not None else (mask != kept) & (_up(trace) != 0)
    threshold = site.selector.thresholds(trace.z)
    if threshold is None or not bool(differ.any()):
        if bool(differ.any()):
            raise ParityError(f"{where}: entries are dropped where the selector drops none")
        return 0
    vector = trace.z if ranked is None else ranked
    unit = torch.finfo(x.dtype).eps * torch.exp2(threshold.double().abs().clamp_min(1e-30).log2().floor())
    slack = unit
    if ranked is not None:
        slack = slack + (x - ranked).double().abs()
        if isinstance(site.selector, TopKSparsification):
            moved = x.abs().topk(site.selector.k, -1).values[:, -1:]
            slack = slack + (moved - threshold).double().abs()
    beyond = differ & ((vector.abs().double() - threshold.double()).abs() > slack)
    if bool(beyond.any()):
        raise ParityError(
            f"{where}: {int(beyond.sum())} entries are kept by one and dropped by the other whose magnitudes are not "
            "within a unit in the last place of the threshold"
        )
    return int(differ.sum())


def _up(trace: _Trace) -> Tensor:
    assert trace.before is not None
    return trace.before.chunk(2, -1)[1]


def _product(decoder: Decoder, layer: int, name: str, given: Tensor) -> Tensor:
    keep = torch.tensor([[0, -1]], dtype=torch.int32, device=given.device)  # what is not zero
    return torch.cat([decoder.product(layer, name, row[None].contiguous(), keep, None) for row in given])


def _outputs(trace: _Trace, name: str, up: Tensor | None) -> Tensor:
    out = torch.cat(trace.out, -1)
    if name == "h3" and up is not None:
        out = torch.cat([out[:, : len(up)], out[:, len(up) :] * up], -1)
    return out


def _agreement(logits: Tensor, evaluated: Tensor) -> dict[str, float]:
    """Of two models' logits [T, vocabulary] on the same tokens; at level 0 it is what rounding alone does."""
    decoded, theirs = logits.double().cpu().log_softmax(-1), evaluated.log_softmax(-1)
    kl = float((theirs.exp() * (theirs - decoded)).sum(-1).mean())
    if not kl < float("inf"):
        raise ParityError("the decoder's logits are not finite")
    return {"top1_agreement": float((decoded.argmax(-1) == theirs.argmax(-1)).double().mean()), "kl_nats": kl}


def _measured(decoder: Decoder, selectors: Selectors, ids: Tensor, traces: _Traces) -> dict[str, float]:
    """Site -> the decoder's level on ids, which must be the plan's; of thresholds, the evaluated model's."""
    masks: dict[tuple[int, str], list[Tensor]] = {}

    def watch(event: SiteEvent) -> None:
        masks.setdefault((event.layer, event.site), []).append(ops.selected_mask(event.x, event.keep))

    decoder.place(0)
    for token in ids:
        decoder.watched(token[None], watch)
    whole = {key: torch.cat(rows) for key, rows in masks.items()}
    for (layer, site), mask in whole.items():
        selector, counts = selectors[site][layer], mask.sum(-1)
        short, over = bool((counts < selector.k).any()), bool((counts > selector.k).any()) and selector.ties == "strict"
        if selector.threshold is None and (short or over):
            raise ParityError(f"layer {layer}, {site}: {counts.tolist()} entries stay, the plan says {selector.k}")
    achieved = levels(whole)
    for site in SITES:
        shown = [t.z_sparse for (_, s), t in traces.by_site.items() if s == site and t.z_sparse is not None]
        if selectors[site][0].threshold is not None and shown:
            theirs = sum(float((z == 0).double().mean()) for z in shown) / len(shown)
            distant = abs(achieved[site] - theirs)
            require(f"{site}: the level's distance from the evaluated model's", distant, _LEVEL_SLACK)
    return achieved
