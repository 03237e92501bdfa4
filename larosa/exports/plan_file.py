"""A plan and quantised weights as JSON and tensors: what :func:`larosa.sparsity.handle.apply` needs, as it was stored.

| tensor | shape, dtype |
|---|---|
| `rotation` | [matrices, D, D] float64 |
| `transforms` | [layers, 2, n, b, b] float64, exact; `method.transform_dtype` rounds them |
| `dropped_mean.SITE` | [layers, width] float32, with `method.bias_compensation=mean` |
| `thresholds.SITE` | [layers] float64; `gate` alone for CATS |
| `low_rank.SITE.LAYER.CONSUMER.left`, `.right` | [out, r] and [r, in], the model's dtype |
| `quantised.LAYER.SITE.qweight`, `.scale` | as :class:`larosa.models.formats.Quantised`; two w4 weights share a byte |
| `dequantised.LAYER.SITE.CONSUMER` | [out, in], the model's dtype: of quantisers with zero points |
| `head.*`, `adapters.N.*` | w8, as the quantised weights |

Names, shapes and dtypes of all tensors follow from the JSON and the model's shape: a file with others is refused
before a tensor is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from larosa.config.base import Strict
from larosa.config.method import Method
from larosa.config.quantization import QuantizationConfig
from larosa.config.run import TokenPolicyConfig
from larosa.exports.errors import ExportError
from larosa.exports.packing import pack, stored_shapes, unpack
from larosa.models.architecture import SITES, ModelView
from larosa.models.formats import Quantised
from larosa.models.sites import ModelShape
from larosa.rotation.rotation import Rotation
from larosa.sparsity.handle import Plan, SparsityHandle
from larosa.sparsity.low_rank import LowRank, LowRankPair
from larosa.sparsity.schedule import Levels

Count = Annotated[int, Field(ge=0)]
Header = dict[str, tuple[tuple[int, ...], str]]
"""Name -> shape and safetensors' name of the dtype."""
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8"}


class LevelsFile(Strict):
    """larosa.sparsity.schedule.Levels."""

    target: float = Field(ge=0.0, lt=1.0)
    level: dict[str, tuple[float, ...]]
    kept: dict[str, tuple[Count, ...]]
    source: str
    weights_per_channel: dict[str, Count]


class PlanFile(Strict):
    """A plan without its tensors, and how its weights are quantised."""

    method: Method
    levels: LevelsFile
    token_policy: TokenPolicyConfig
    thresholds: tuple[str, ...] | None
    """Sites that have thresholds, or `gate`."""
    calibrated_in: str | None
    rotation: tuple[tuple[Count, Count], ...] | None
    """Layer -> the matrices of h1 and h3."""
    blocks: tuple[Count, Count] | None
    """Online transforms: number and size of their diagonal blocks."""
    low_rank: dict[str, tuple[tuple[Count, ...], ...]] | None
    """Site -> layer -> the rank of each consumer's pair."""
    quantization: QuantizationConfig | None
    adapters: Count
    """Residual adapters with quantised weights."""


def described(handle: SparsityHandle) -> PlanFile:
    """The JSON part of what the handle's model follows."""
    plan, quantization = handle.plan, handle.quantization
    blocks = None if plan.transforms is None else (plan.transforms.shape[2], plan.transforms.shape[3])
    method: Any = plan.method  # of one of the classes that the schema tells apart
    return PlanFile(
        method=method,
        levels=LevelsFile(**vars(plan.levels)),
        token_policy=plan.token_policy,
        thresholds=None if plan.thresholds is None else tuple(plan.thresholds),
        calibrated_in=plan.calibrated_in,
        rotation=None if plan.rotation is None else tuple(plan.rotation.index),
        blocks=blocks,
        low_rank=None if plan.low_rank is None else _ranks(plan.low_rank),
        quantization=quantization,
        adapters=len(handle.adapters) if quantization and quantization.adapters != "none" else 0,
    )


def _ranks(low_rank: LowRank) -> dict[str, tuple[tuple[int, ...], ...]]:
    return {site: tuple(tuple(pair.rank for pair in pairs) for pairs in low_rank[site]) for site in SITES}


def tensors(handle: SparsityHandle, view: ModelView) -> dict[str, Tensor]:
    """All tensors of the plan and of the quantised weights, on the CPU, as they are stored."""
    plan = handle.plan
    stored: dict[str, Tensor] = {}
    if plan.rotation is not None:
        stored["rotation"] = plan.rotation.matrices
    if plan.transforms is not None:
        stored["transforms"] = plan.transforms
    for site, thresholds in (plan.thresholds or {}).items():
        stored[f"thresholds.{site}"] = torch.tensor(thresholds, dtype=torch.float64)
    stored |= {f"dropped_mean.{site}": means for site, means in (plan.dropped_mean or {}).items()}
    for site, layers in (plan.low_rank or {}).items():
        for layer, pairs in enumerate(layers):
            for consumer, pair in enumerate(pairs):
                place = f"low_rank.{site}.{layer}.{consumer}"
                stored |= {f"{place}.left": pair.left, f"{place}.right": pair.right}
    stored |= _quantised_tensors(handle, view)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in stored.items()}


def _quantised_tensors(handle: SparsityHandle, view: ModelView) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = {}
    for (layer, site), matrix in handle.quantised.items():
        stored |= pack(f"quantised.{layer}.{site}", matrix)
    if handle.quantization is not None and _with_zero_points(handle.quantization):
        for layer_view, site in view.sites():
            for i, linear in enumerate(layer_view.consumers(site)):
                stored[f"dequantised.{layer_view.index}.{site}.{i}"] = linear.weight
    if handle.quantised_head is not None:
        stored |= pack("head", handle.quantised_head)
    for i, adapter in enumerate(handle.adapters):
        if adapter.quantised is not None:
            stored |= pack(f"adapters.{i}", adapter.quantised)
    return stored


def _with_zero_points(config: QuantizationConfig) -> bool:
    """Whether the quantiser's weights have no scale alone: neural-compressor's GPTQ and AWQ."""
    return config.calibrated and config.group_axis == "in"


def check(file: PlanFile, shape: ModelShape) -> None:
    """Raise ExportError where the parts of the plan do not go together or do not fit a model of this shape."""
    levels, method = file.levels, file.method
    problems = [
        (set(levels.level) == set(levels.kept) == set(levels.weights_per_channel) == set(SITES), "levels per site"),
        (all(len(rows[s]) == shape.layers for rows in (levels.level, levels.kept) for s in rows), "levels per layer"),
        (all(k <= shape.sites[s].width for s in levels.kept for k in levels.kept[s]), "kept channels"),
        (_thresholds_fit(file), f"selector {method.selector} and thresholds {file.thresholds or 'none'}"),
        ((method.form in ("absorbed", "simulated")) == (file.rotation is not None), f"form {method.form}, rotation"),
        ((method.form == "online") == (file.blocks is not None), f"form {method.form}, transforms"),
        (file.rotation is None or len(file.rotation) == shape.layers, "rotations per layer"),
        (file.blocks is None or file.blocks[0] * file.blocks[1] == shape.hidden_size, "blocks of transforms"),
        ((method.name == "r_sparse") == (file.low_rank is not None), "low-rank pairs"),
        (file.low_rank is None or all(_ranks_fit(file.low_rank.get(s, ()), s, shape) for s in SITES), "low-rank pairs"),
    ]
    for fits, what in problems:
        if not fits:
            raise ExportError(f"the export's plan is inconsistent ({what} do not go together): export it again")


def _thresholds_fit(file: PlanFile) -> bool:
    """A Top-K plan has none, CATS those of the gate, another plan of thresholds one per site."""
    if file.method.selector == "top_k":
        return file.thresholds is None
    expected = {"gate"} if file.method.name == "cats" else set(SITES)
    return set(file.thresholds or ()) == expected and file.calibrated_in == file.method.coordinates


def _ranks_fit(layers: tuple[tuple[int, ...], ...], site: str, shape: ModelShape) -> bool:
    return len(layers) == shape.layers and all(len(ranks) in (0, shape.sites[site].consumers) for ranks in layers)


def expected(file: PlanFile, shape: ModelShape, dtype: torch.dtype, vocabulary: int) -> Header:
    """Name, shape and dtype of every tensor that a checked plan has."""
    D, dtype_name, header = shape.hidden_size, _DTYPES[dtype], Header()
    if file.rotation is not None:
        header["rotation"] = ((1 + max(max(pair) for pair in file.rotation), D, D), "F64")
    if file.blocks is not None:
        header["transforms"] = ((shape.layers, 2, file.blocks[0], file.blocks[1], file.blocks[1]), "F64")
    header |= {f"thresholds.{site}": ((shape.layers,), "F64") for site in file.thresholds or ()}
    if file.method.bias_compensation == "mean":
        header |= {f"dropped_mean.{name}": ((shape.layers, site.width), "F32") for name, site in shape.sites.items()}
    for site, layers in (file.low_rank or {}).items():
        for layer, ranks in enumerate(layers):
            for i, rank in enumerate(ranks):
                place = f"low_rank.{site}.{layer}.{i}"
                header[f"{place}.left"] = ((shape.sites[site].outputs[i], rank), dtype_name)
                header[f"{place}.right"] = ((rank, shape.sites[site].width), dtype_name)
    return header | _expected_quantised(file, shape, dtype_name, vocabulary)


def _expected_quantised(file: PlanFile, shape: ModelShape, dtype: str, vocabulary: int) -> Header:
    config, D, header = file.quantization, shape.hidden_size, Header()
    if config is None:
        return header
    for layer in range(shape.layers if config.weights != "none" else 0):
        for site, geometry in shape.sites.items():
            if _with_zero_points(config):
                places = enumerate(geometry.outputs)
                header |= {f"dequantised.{layer}.{site}.{i}": ((out, geometry.width), dtype) for i, out in places}
            else:
                size = (geometry.width, geometry.out_features)
                header |= stored_shapes(f"quantised.{layer}.{site}", config.scheme, *size)
    if config.head != "none":
        header |= stored_shapes("head", "w8", D, vocabulary)
    for i in range(file.adapters):
        header |= stored_shapes(f"adapters.{i}", "w8", D, D)
    return header


def read(path: Path, header: Header) -> dict[str, Tensor]:
    """The tensors of a file with exactly this header, in memory of their own. Raises ExportError for another one."""
    try:
        with safe_open(path, "pt") as held:
            names = list(held.keys())
            slices = {name: held.get_slice(name) for name in names}
            there = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
            wrong = sorted(name for name in there.keys() | header.keys() if there.get(name) != header.get(name))
            if wrong:
                raise ExportError(
                    f"{path} does not fit its plan.json: tensor {wrong[0]} is {there.get(wrong[0], 'missing')}, "
                    f"expected {header.get(wrong[0], 'none')}"
                )
            return {name: held.get_tensor(name).clone() for name in names}
    except SafetensorError as error:
        raise ExportError(f"{path} cannot be read as safetensors ({error}): export it again") from error


def plan_of(file: PlanFile, shape: ModelShape, held: Mapping[str, Tensor]) -> Plan:
    """The plan of a checked file with its tensors."""
    thresholds = {site: tuple(held[f"thresholds.{site}"].tolist()) for site in file.thresholds or ()}
    compensated = file.method.bias_compensation == "mean"
    return Plan(
        file.method,
        shape,
        Levels(**dict(file.levels)),
        file.token_policy,
        rotation=None if file.rotation is None else Rotation(held["rotation"], list(file.rotation)),
        thresholds=thresholds or None,
        calibrated_in=file.calibrated_in,
        transforms=held.get("transforms"),
        low_rank=None if file.low_rank is None else _low_rank(file.low_rank, held),
        dropped_mean={site: held[f"dropped_mean.{site}"] for site in SITES} if compensated else None,
    )


def _low_rank(ranks: Mapping[str, tuple[tuple[int, ...], ...]], held: Mapping[str, Tensor]) -> LowRank:
    def pair(place: str) -> LowRankPair:
        return LowRankPair(held[f"{place}.left"], held[f"{place}.right"])

    return {
        site: tuple(
            tuple(pair(f"low_rank.{site}.{layer}.{i}") for i in range(len(pairs)))
            for layer, pairs in enumerate(ranks[site])
        )
        for site in SITES
    }


@torch.no_grad()
def restore_quantised(handle: SparsityHandle, view: ModelView, file: PlanFile, held: Mapping[str, Tensor]) -> None:
    """Give the handle's model, which follows the plan, the quantised weights as they were stored."""
    config = handle.quantization = file.quantization
    if config is None:
        return
    for layer, site in view.sites() if config.weights != "none" else ():
        linears = layer.consumers(site)
        if _with_zero_points(config):
            weights = [held[f"dequantised.{layer.index}.{site}.{i}"] for i in range(len(linears))]
        else:
            place, scheme = f"quantised.{layer.index}.{site}", config.scheme
            handle.quantised[layer.index, site] = matrix = _matrix(place, scheme, linears, held)
            weights = matrix.consumers([len(linear.weight) for linear in linears], linears[0].weight.dtype)
        for linear, weight in zip(linears, weights, strict=True):
            handle.exchange(linear, "weight", weight)
    if config.head != "none":
        handle.untie()
        handle.quantised_head = matrix = _matrix("head", "w8", [view.head], held)
        handle.exchange(view.head, "weight", matrix.consumers([len(view.head.weight)], view.head.weight.dtype)[0])
    for i, adapter in enumerate(handle.adapters[: file.adapters]):
        size = (len(adapter.matrix), len(adapter.matrix))
        adapter.round_to(unpack(f"adapters.{i}", "w8", size, held).to(adapter.matrix.device))


def _matrix(place: str, scheme: str, linears: list[nn.Linear], held: Mapping[str, Tensor]) -> Quantised:
    weight = linears[0].weight
    size = (weight.shape[1], sum(len(linear.weight) for linear in linears))
    return unpack(place, scheme, size, held).to(weight.device)
