"""What a plan saves and what it costs, counted one way for every method.

byte-weighted level = weight bytes not read / weight bytes of the seven projections
extras              = bytes that the method reads besides (residual adapters, online transforms, low-rank pairs)
net bytes           = projection bytes - bytes not read + extras, as a share of the projection bytes
FLOPs               = two a weight that is read, extras included; see :func:`flops`
paper count         = levels weighted by width * projections that read the site (the paper's "model-level sparsity")

Weights count two bytes whatever precision a run has: decoders run in 16 bits, and a float32 run on a CPU must not make
an int8 transform look half as large as it is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from larosa_kernels.ops.sparse_gemv_quantised.packing import BLOCK

from larosa.config.quantization import QuantizationConfig
from larosa.models.architecture import SITES
from larosa.models.formats import GROUP
from larosa.models.sites import ModelShape, Site
from larosa.rotation.online import stored_bytes
from larosa.sparsity.handle import Plan
from larosa.sparsity.low_rank import LowRank
from larosa.sparsity.schedule import byte_weighted

COUNTED_BYTES = 2
_WEIGHT_BITS = {"none": 8 * COUNTED_BYTES, "w8": 8, "w4": 4}
LLAMA2_7B = ModelShape(
    layers=32,
    hidden_size=4096,
    sites={
        "h1": Site(4096, (4096, 4096, 4096)),
        "h2": Site(4096, (4096,)),
        "h3": Site(4096, (11008, 11008)),
        "h4": Site(11008, (4096,)),
    },
)
"""The paper's first model, in whose proportions every method's extras are stated beside the model's own."""


@dataclass(frozen=True)
class Overhead:
    """What a method adds at run time, a token."""

    kind: str
    products: int
    bytes: int


def extras(plan: Plan, shape: ModelShape | None = None) -> Overhead:
    """Run-time extras of a plan, a token; as they would be on another `shape` with as many layers, if given.

    Column norms to rank by are one 16-bit number a channel, though an implementation can hide most of them in norms.
    """
    shape = shape or plan.shape
    products = _products(plan, shape)
    if plan.method.importance != "column_norm":
        return products
    scores = plan.shape.layers * sum(site.width for site in shape.sites.values()) * COUNTED_BYTES
    kind = "column norms" if products.kind == "none" else f"{products.kind}; column norms"
    return Overhead(kind, products.products, products.bytes + scores)


def _share_at_llama2_7b(plan: Plan) -> float | None:
    """None where the plan's blocks would not fill LLaMA2-7B's width: its extras do not exist there."""
    if LLAMA2_7B.hidden_size % (plan.method.block_size or 1):
        return None
    projections = plan.shape.layers * LLAMA2_7B.layer_weights * COUNTED_BYTES
    return extras(plan, LLAMA2_7B).bytes / projections


def _products(plan: Plan, shape: ModelShape) -> Overhead:
    D, rotation, method = shape.hidden_size, plan.rotation, plan.method
    if plan.low_rank is not None:
        own = _low_rank_extras(plan.low_rank)  # ranks are shares of the weights, on any shape
        return Overhead(own.kind, own.products, own.bytes * shape.layer_weights // plan.shape.layer_weights)
    if method.form == "online":
        products, storage = 2 * plan.shape.layers, method.transform_dtype
        size = f"blocks of {method.block_size}" if method.block_size else "D x D"
        each = stored_bytes(D, method.block_size, storage, COUNTED_BYTES)
        return Overhead(f"online transforms, {size}, {storage}", products, products * each)
    if rotation is None or method.basis == "identity":  # nothing to turn
        return Overhead("none", 0, 0)
    if method.form == "absorbed":
        products = rotation.adapters
        kind = "residual adapters, D x D" if products else "none"
    else:
        # Run for real, the rotation in front of each norm's readers is one product: the way back is absorbed.
        products, kind = 2 * plan.shape.layers, "explicit rotations, D x D (if really run)"
    return Overhead(kind, products, products * D * D * COUNTED_BYTES)


def _low_rank_extras(low_rank: LowRank) -> Overhead:
    """A pair is one product more for each projection, and is read whole."""
    pairs = [pair for layers in low_rank.values() for readers in layers for pair in readers]
    if not pairs:
        return Overhead("none", 0, 0)
    least, most = min(pair.rank for pair in pairs), max(pair.rank for pair in pairs)
    ranks = f"rank {least}" if least == most else f"rank {least} to {most}"
    weights = sum(pair.left.numel() + pair.right.numel() for pair in pairs)
    return Overhead(f"low-rank remainders, {ranks}", len(pairs), weights * COUNTED_BYTES)


def flops(plan: Plan, level: float, vocabulary: int | None) -> dict[str, int | None]:
    """Floating-point operations a token; a multiply-add counts two. `level`: byte-weighted.

    `projections_kept` and `extras` replace `projections` where the zeros are skipped; searches for the k-th magnitude
    and norms are not counted, as in the paper's tables. A token attends to the tokens before it and to itself, each
    for `attention_per_token_attended`. `head` is None where the `vocabulary` is not known.
    """
    shape = plan.shape
    dense = 2 * shape.layers * shape.layer_weights
    return {
        "projections": dense,
        "projections_kept": round(dense * (1.0 - level)),
        "overhead": _extra_flops(plan),
        "attention_per_token_attended": 4 * shape.layers * shape.sites["h2"].width,
        "head": None if vocabulary is None else 2 * shape.hidden_size * vocabulary,
    }


def _extra_flops(plan: Plan) -> int:
    shape, method = plan.shape, plan.method
    scores = (
        shape.layers * sum(site.width for site in shape.sites.values()) if method.importance == "column_norm" else 0
    )
    if plan.low_rank is not None:
        pairs = [pair for layers in plan.low_rank.values() for readers in layers for pair in readers]
        return scores + 2 * sum(pair.left.numel() + pair.right.numel() for pair in pairs)
    block = method.block_size if method.form == "online" and method.block_size else shape.hidden_size
    return scores + 2 * extras(plan).products * shape.hidden_size * block


def account(plan: Plan, vocabulary: int | None = None) -> dict[str, Any]:
    """The planned accounting of a plan. Levels and shares are fractions, bytes and operations are per token.

    `vocabulary`: the head's outputs, for its operations.
    """
    shape = plan.shape
    planned = {s: tuple(plan.levels.planned(s, i, shape) for i in range(shape.layers)) for s in SITES}
    projections = shape.layers * shape.layer_weights * COUNTED_BYTES
    level, added = byte_weighted(planned, shape, plan.levels.skips), extras(plan)
    return {
        "target_sparsity": plan.levels.asked,
        "weight_sparsity": level,
        "nominal_sparsity": _paper_count(planned, shape),
        "planned_sparsity": planned,
        "coefficients": plan.levels.source,
        "bytes_per_weight": COUNTED_BYTES,
        "projection_bytes": projections,
        "overhead": asdict(added),
        "overhead_fraction": added.bytes / projections,
        "overhead_fraction_llama2_7b": _share_at_llama2_7b(plan),
        "read_fraction": 1.0 - level + added.bytes / projections,
        "flops_per_token": flops(plan, level, vocabulary),
    }


def quantised_account(plan: Plan, config: QuantizationConfig, vocabulary: int) -> dict[str, Any]:
    """Bytes a token with weights as they are stored, scales included; what is not rounded counts two bytes a weight.

    Scales of w4 count whole: those of kept inputs lie among the others. `total_read_bytes` is what is read of the projections,
    and the extras; its shares are of the dense projections stored alike, and in 16 bits. The head is apart.
    """
    shape = plan.shape
    dense = shape.layers * sum(_stored(s, shape.sites[s], config) for s in SITES)
    zeros = {s: sum(shape.sites[s].width - kept for kept in plan.levels.kept[s]) for s in SITES}
    outputs = {s: plan.levels.skips[s] * _outputs(s, shape.sites[s], config) // shape.sites[s].fan_out for s in SITES}
    read = dense - sum(zeros[s] * outputs[s] for s in SITES) * _WEIGHT_BITS[config.weights] // 8
    D, added = shape.hidden_size, extras(plan).bytes
    if config.adapters == "w8" and plan.rotation is not None and plan.method.form == "absorbed":
        added -= plan.rotation.adapters * (D * D * (COUNTED_BYTES - 1) - 4 * D)
    head = D * vocabulary + 4 * vocabulary if config.head == "w8" else D * vocabulary * COUNTED_BYTES
    return {
        "projection_bytes": dense,
        "read_bytes": read,
        "overhead_bytes": added,
        "total_read_bytes": read + added,
        "read_fraction": (read + added) / dense,
        "read_fraction_of_16_bit": (read + added) / (shape.layers * shape.layer_weights * COUNTED_BYTES),
        "head_bytes": head,
    }


def _outputs(name: str, site: Site, config: QuantizationConfig) -> int:
    """Outputs of a site's readers as they are stored: the decoder packs 4-bit codes in blocks (its packing.py)."""
    if config.weights != "w4" or config.group_axis != "out":
        return site.fan_out
    if name == "h3":  # half of a block are gates, the other half their ups
        return -(-site.fan_out // 2 // (BLOCK // 2)) * BLOCK
    return -(-site.fan_out // BLOCK) * BLOCK


def _stored(name: str, site: Site, config: QuantizationConfig) -> int:
    """Bytes of codes and scales of a site's readers, a layer."""
    outputs = _outputs(name, site, config)
    codes = site.width * outputs * _WEIGHT_BITS[config.weights] // 8
    if config.weights == "none":
        return codes
    if config.weights == "w8":
        return codes + 4 * outputs
    along, across = (outputs, site.width) if config.group_axis == "out" else (site.width, outputs)
    # A library's grid has a zero point beside the scale, counted like it.
    numbers = 1 if config.quantizer == "rtn" or config.group_axis == "out" else 2
    return codes + 2 * numbers * across * -(-along // GROUP)


def _paper_count(levels: dict[str, tuple[float, ...]], shape: ModelShape) -> float:
    weight = {site: shape.sites[site].width * shape.sites[site].readers for site in SITES}
    skipped = sum(level * weight[site] for site in SITES for level in levels[site])
    return skipped / (shape.layers * sum(weight.values()))
