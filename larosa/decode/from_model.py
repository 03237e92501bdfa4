"""The decoder's weights from a transformers model as it stands: dense, or made sparse by a handle.

Rotations that are absorbed are in the linears already. A simulated rotation Q becomes what it is when really run, one
product `x Q` behind the norm, and the readers get `W Q`. Column norms to rank by (WINA) are folded so that ranking
costs nothing: into the norm's weight, the transform's outputs or up's columns, and out of the readers' rows again;
h2, whose channels kv heads may share, is multiplied by them as it is selected.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from larosa.decode.errors import DecodeError
from larosa.decode.matrix import Matrix, PackedMatrix
from larosa.decode.weights import DecodeWeights, LayerWeights, Transform
from larosa.models.architecture import SITES, LayerView, ModelView

if TYPE_CHECKING:
    from larosa.rotation.rotation import ResidualAdapter
    from larosa.sparsity.handle import SparsityHandle
    from larosa.sparsity.site import SparseSite


@torch.no_grad()
def weights_of(model: PreTrainedModel, handle: SparsityHandle | None = None) -> DecodeWeights:
    """Copy the weights of `model`, sparse by `handle` or dense, to where they are. Raises DecodeError.

    The copy costs the model's memory once more; drop the model where that is too much.
    """
    view = ModelView(model)
    places = {parameter.device for parameter in model.parameters()}
    if len(places) > 1:
        raise DecodeError(f"the model is spread over {len(places)} devices: the decoder runs on one")
    sites = _sites(handle)
    adapters = _adapters(handle, len(view.layers))
    layers = tuple(
        _layer(layer, {site: sites.get((layer.index, site)) for site in SITES}, adapters[layer.index], handle)
        for layer in view.layers
    )
    norm = view.final_norm.get_parameter("weight")
    embedding, head = view.embedding.weight.detach(), view.head.weight.detach()
    codes = None if handle is None else handle.quantised_head
    return DecodeWeights(
        model.config, layers, embedding, norm.detach(), head if codes is None else PackedMatrix.of(codes)
    )


def _sites(handle: SparsityHandle | None) -> dict[tuple[int, str], SparseSite]:
    if handle is None:
        return {}
    if handle.plan.low_rank is not None:
        raise DecodeError("the decoder does not run low-rank remainders (method=r_sparse)")
    if handle.plan.dropped_mean is not None:
        raise DecodeError("the decoder does not run compensating biases (method.bias_compensation=mean)")
    if handle.plan.token_policy.kind not in ("all", "decode_only"):
        raise DecodeError(f"tokens={handle.plan.token_policy.kind}: the decoder knows all and decode_only")
    return {(site.layer, site.site): site for site in handle.sites}


def _adapters(handle: SparsityHandle | None, layers: int) -> list[dict[str, Matrix]]:
    """Layer -> site -> the matrix in front of it, in the order in which rotation.absorb made them."""
    adapters: list[dict[str, Matrix]] = [{} for _ in range(layers)]
    if handle is None or handle.plan.rotation is None or not handle.adapters:
        return adapters
    waiting, index = iter(handle.adapters), handle.plan.rotation.index
    for layer, (attention, mlp) in enumerate(index):
        if index[max(layer - 1, 0)][0] != attention:
            adapters[layer]["h1"] = _adapter(next(waiting))
        if attention != mlp:
            adapters[layer]["h3"] = _adapter(next(waiting))
    return adapters


def _adapter(adapter: ResidualAdapter) -> Matrix:
    return adapter.matrix if adapter.quantised is None else PackedMatrix.of(adapter.quantised)


def _layer(
    layer: LayerView, sites: dict[str, SparseSite | None], adapters: dict[str, Matrix], handle: SparsityHandle | None
) -> LayerWeights:
    norms = {site: layer.norm(site).get_parameter("weight").detach() for site in ("h1", "h3")}
    matrices, biases, transforms = dict[str, Matrix](), dict[str, Tensor](), dict[str, Transform]()
    scale: Tensor | None = None
    for name, site in sites.items():
        readers = layer.consumers(name)
        matrix, transform = _behind(readers, site)
        codes = None if handle is None else handle.quantised.get((layer.index, name))
        matrices[name] = matrix if codes is None else PackedMatrix.of(codes, paired=name == "h3")
        bias = _bias(readers)
        if bias is not None:
            biases[name] = bias
        if transform is not None:
            transforms[name] = transform
    for name, site in sites.items():
        score = getattr(site.selector, "importance", None) if site is not None else None
        if score is None:
            continue
        _divide_rows(_tensor(matrices[name]), score)
        if name in transforms:
            transforms[name] = _scaled(transforms[name], score)
        elif name in norms:
            norms[name] = norms[name] * score
        elif name == "h2":
            scale = score
        else:
            up = slice(len(score), None)
            _tensor(matrices["h3"])[:, up] *= score
            if "h3" in biases:
                biases["h3"][up] *= score
    return LayerWeights(matrices, norms, biases, adapters, transforms, _head_norms(layer), scale)


def _head_norms(layer: LayerView) -> Tensor | None:
    norms = [norm.get_parameter("weight").detach() for norm in layer.head_norms()]
    return torch.stack(norms) if norms else None


def _behind(readers: list[nn.Linear], site: SparseSite | None) -> tuple[Tensor, Transform | None]:
    """What reads a site, input-major, and the transform in front of it."""
    weight = torch.cat([linear.weight for linear in readers]).detach()
    rotation = getattr(site, "rotation", None)
    if rotation is not None:
        Q = rotation.Q.to(weight.device)
        return (weight.double() @ Q.double()).to(weight.dtype).T.contiguous(), Transform(Q.to(weight.dtype))
    matrix = weight.T.contiguous()
    if site is None or site.transform is None:
        return matrix, None
    transform = site.transform
    if transform.storage == "int8" and len(transform.qweight) == 1:
        assert transform.scales is not None
        return matrix, Transform(transform.qweight[0].T.contiguous(), transform.scales[0, :, 0].float())
    blocks = transform.blocks(torch.float32).transpose(-1, -2).to(weight.dtype).contiguous()
    return matrix, Transform(blocks[0] if len(blocks) == 1 else blocks)


def _bias(readers: list[nn.Linear]) -> Tensor | None:
    biases: list[Tensor] = [linear.bias for linear in readers if linear.bias is not None]
    if biases and len(biases) < len(readers):
        raise DecodeError("some projections of a site have biases and others none")
    return torch.cat(biases).detach() if biases else None


def _tensor(matrix: Matrix) -> Tensor:
    if isinstance(matrix, PackedMatrix):
        raise DecodeError(
            "column norms are folded into the weights, which leaves no quantised format: rank by magnitude"
        )
    return matrix


def _divide_rows(matrix: Tensor, score: Tensor) -> None:
    """In place; a score of zero belongs to a row of zeros."""
    matrix /= torch.where(score > 0, score, 1)[:, None]


def _scaled(transform: Transform, score: Tensor) -> Transform:
    """The transform with its outputs multiplied by score [D]."""
    if transform.scale is not None:
        return Transform(transform.matrix, transform.scale * score.float())
    return Transform(transform.matrix * score.view(*transform.matrix.shape[:-2], 1, -1))
