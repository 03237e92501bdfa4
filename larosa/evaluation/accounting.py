"""What a plan saves and what it costs, counted one way for every method.

weight sparsity  = weight bytes not read / weight bytes of the seven projections
overhead         = bytes that the method reads besides (residual adapters, online transforms, low-rank pairs,
                   column norms, bias vectors)
read fraction    = (projection bytes - bytes not read + overhead) / projection bytes
FLOPs            = two per weight that is read, overhead included; see :func:`flops`
nominal sparsity = levels weighted by width * consumers of the site (the paper's "model-level sparsity")

A weight counts two bytes, whatever the precision of a run. Decoders run in 16 bits; a float32 run on a CPU must not
halve the relative size of an int8 transform.
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
"""The paper's first model. Every method's overhead is also stated in its proportions."""


@dataclass(frozen=True)
class Overhead:
    """Run-time overhead of a method, per token: its kind, products and bytes."""

    kind: str
    products: int
    bytes: int


def overhead(plan: Plan, shape: ModelShape | None = None) -> Overhead:
    """Run-time overhead of a plan per token; with `shape`, the overhead on that shape with as many layers.

    Column norms count one 16-bit number per channel, although an implementation can fold most of them into norms.
    """
    shape = shape or plan.shape
    products = _products(plan, shape)
    vectors = _vectors(plan, shape)
    kinds = "; ".join([kind for kind in (products.kind, *vectors) if kind != "none"]) or "none"
    return Overhead(kinds, products.products, products.bytes + COUNTED_BYTES * sum(vectors.values()))


def _vectors(plan: Plan, shape: ModelShape) -> dict[str, int]:
    """Kind -> numbers of all layers: those of column norms per channel, of bias vectors per output channel."""
    layers, sites, numbers = plan.shape.layers, shape.sites.values(), dict[str, int]()
    if plan.method.norm_exponent:
        numbers["column norms"] = layers * sum(site.width for site in sites)
    if plan.method.bias_compensation == "mean":
        numbers["bias vectors"] = layers * sum(site.out_features for site in sites)
    return numbers


def _share_at_llama2_7b(plan: Plan) -> float | None:
    """Overhead as a fraction of LLaMA2-7B's projections; None where the plan's blocks do not divide its width."""
    if LLAMA2_7B.hidden_size % (plan.method.block_size or 1):
        return None
    projections = plan.shape.layers * LLAMA2_7B.layer_weights * COUNTED_BYTES
    return overhead(plan, LLAMA2_7B).bytes / projections


def _products(plan: Plan, shape: ModelShape) -> Overhead:
    D, rotation, method = shape.hidden_size, plan.rotation, plan.method
    if plan.low_rank is not None:
        low_rank = _low_rank_overhead(plan.low_rank)  # ranks are fractions of the weights, on any shape
        return Overhead(
            low_rank.kind, low_rank.products, low_rank.bytes * shape.layer_weights // plan.shape.layer_weights
        )
    if method.form == "online":
        products, storage = 2 * plan.shape.layers, method.transform_dtype
        size = f"block size {method.block_size}" if method.block_size else "D x D"
        each = stored_bytes(D, method.block_size, storage, COUNTED_BYTES)
        return Overhead(f"online transforms, {size}, {storage}", products, products * each)
    if rotation is None or method.basis == "identity":  # nothing to rotate
        return Overhead("none", 0, 0)
    if method.form == "absorbed":
        products = rotation.adapters
        kind = "residual adapters, D x D" if products else "none"
    else:
        # Run as a product, the rotation before each norm's consumers is one per norm: its inverse is absorbed.
        products, kind = 2 * plan.shape.layers, "online rotations, D x D (if run as products)"
    return Overhead(kind, products, products * D * D * COUNTED_BYTES)


def _low_rank_overhead(low_rank: LowRank) -> Overhead:
    """A low-rank pair adds one product per projection and is read in full."""
    pairs = [pair for layers in low_rank.values() for pairs_of_site in layers for pair in pairs_of_site]
    if not pairs:
        return Overhead("none", 0, 0)
    least, most = min(pair.rank for pair in pairs), max(pair.rank for pair in pairs)
    ranks = f"rank {least}" if least == most else f"rank {least} to {most}"
    weights = sum(pair.left.numel() + pair.right.numel() for pair in pairs)
    return Overhead(f"low-rank remainders, {ranks}", len(pairs), weights * COUNTED_BYTES)


def flops(plan: Plan, level: float, vocabulary: int | None) -> dict[str, int | None]:
    """Floating-point operations per token; a multiply-add counts two. `level`: the weight sparsity.

    `projections_kept` and `overhead` replace `projections` where zeros are skipped. As in the paper's tables, norms and
    the search for the k-th magnitude are not counted. A token attends to itself and the tokens before it, each for
    `attention_per_token_attended`. `head` is None where the `vocabulary` is not known.
    """
    shape = plan.shape
    dense = 2 * shape.layers * shape.layer_weights
    return {
        "projections": dense,
        "projections_kept": round(dense * (1.0 - level)),
        "overhead": _overhead_flops(plan),
        "attention_per_token_attended": 4 * shape.layers * shape.sites["h2"].width,
        "head": None if vocabulary is None else 2 * shape.hidden_size * vocabulary,
    }


def _overhead_flops(plan: Plan) -> int:
    shape, method = plan.shape, plan.method
    scores = sum(_vectors(plan, shape).values())
    if plan.low_rank is not None:
        pairs = [pair for layers in plan.low_rank.values() for pairs_of_site in layers for pair in pairs_of_site]
        return scores + 2 * sum(pair.left.numel() + pair.right.numel() for pair in pairs)
    block = method.block_size if method.form == "online" and method.block_size else shape.hidden_size
    return scores + 2 * overhead(plan).products * shape.hidden_size * block


def account(plan: Plan, vocabulary: int | None = None) -> dict[str, Any]:
    """The accounting of a plan. Sparsities are fractions; bytes and operations are per token.

    `vocabulary`: outputs of the head, to count its operations.
    """
    shape = plan.shape
    planned = {s: tuple(plan.levels.planned(s, i, shape) for i in range(shape.layers)) for s in SITES}
    projections = shape.layers * shape.layer_weights * COUNTED_BYTES
    level, added = byte_weighted(planned, shape, plan.levels.weights_per_channel), overhead(plan)
    return {
        "target_sparsity": plan.levels.target,
        "weight_sparsity": level,
        "nominal_sparsity": _nominal_sparsity(planned, shape),
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
    """Bytes per token with quantised weights, scales included; an unquantised weight counts two bytes.

    All scales of w4 count as read, because those of kept inputs lie among the others. `total_read_bytes` are those of
    the projections and the overhead. `read_fraction` is of the dense projections in the same format,
    `read_fraction_of_16_bit` of those in 16 bits. The head is counted apart.
    """
    shape = plan.shape
    dense = shape.layers * sum(_stored(s, shape.sites[s], config) for s in SITES)
    zeros = {s: sum(shape.sites[s].width - kept for kept in plan.levels.kept[s]) for s in SITES}
    per_channel = plan.levels.weights_per_channel
    outputs = {s: per_channel[s] * _outputs(s, shape.sites[s], config) // shape.sites[s].out_features for s in SITES}
    read = dense - sum(zeros[s] * outputs[s] for s in SITES) * _WEIGHT_BITS[config.weights] // 8
    D, added = shape.hidden_size, overhead(plan).bytes
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
    """Stored outputs of a site's consumers: the decoder pads 4-bit weights to whole blocks (packing.py)."""
    if config.weights != "w4" or config.group_axis != "out":
        return site.out_features
    if name == "h3":  # half of a block belongs to gate, the other half to up
        return -(-site.out_features // 2 // (BLOCK // 2)) * BLOCK
    return -(-site.out_features // BLOCK) * BLOCK


def _stored(name: str, site: Site, config: QuantizationConfig) -> int:
    """Bytes of quantised weights and scales of a site's consumers, per layer."""
    outputs = _outputs(name, site, config)
    packed = site.width * outputs * _WEIGHT_BITS[config.weights] // 8
    if config.weights == "none":
        return packed
    if config.weights == "w8":
        return packed + 4 * outputs
    along, across = (outputs, site.width) if config.group_axis == "out" else (site.width, outputs)
    # The library's format has a zero point beside each scale; it counts like the scale.
    numbers = 1 if config.quantizer == "rtn" or config.group_axis == "out" else 2
    return packed + 2 * numbers * across * -(-along // GROUP)


def _nominal_sparsity(levels: dict[str, tuple[float, ...]], shape: ModelShape) -> float:
    weight = {site: shape.sites[site].width * shape.sites[site].consumers for site in SITES}
    skipped = sum(level * weight[site] for site in SITES for level in levels[site])
    return skipped / (shape.layers * sum(weight.values()))
