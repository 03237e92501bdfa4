"""What a plan saves and what it costs, counted one way for every method.

byte-weighted level = weight bytes not read / weight bytes of the seven projections
extras              = bytes that the method reads besides (residual adapters, explicit transforms, low-rank pairs)
net bytes           = projection bytes - bytes not read + extras, as a share of the projection bytes
paper count         = levels weighted by width * projections that read the site (the paper's "model-level sparsity")

Weights count two bytes whatever precision a run has: decoders run in 16 bits, and a float32 run on a CPU must not make
an int8 transform look half as large as it is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from larosa.architecture import SITES
from larosa.rotation.explicit import stored_bytes
from larosa.sites import ModelShape
from larosa.sparsity.handle import Plan
from larosa.sparsity.low_rank import LowRank
from larosa.sparsity.schedule import byte_weighted


@dataclass(frozen=True)
class Extras:
    """What a method adds at run time, a token."""

    kind: str
    products: int
    bytes: int


COUNTED_BYTES = 2


def extras(plan: Plan) -> Extras:
    """Run-time extras of a plan, a token."""
    D, rotation = plan.shape.hidden_size, plan.rotation
    if plan.low_rank is not None:
        return _low_rank_extras(plan.low_rank)
    if plan.method.form == "explicit":
        products, storage = 2 * plan.shape.layers, plan.method.transform_storage
        return Extras(
            f"explicit transforms, D x D, {storage}", products, products * stored_bytes(D, storage, COUNTED_BYTES)
        )
    if rotation is None or plan.method.basis == "identity":  # nothing to turn
        return Extras("none", 0, 0)
    if plan.method.form == "absorbed":
        products = rotation.adapters
        kind = "residual adapters, D x D" if products else "none"
    else:
        # Run for real, the rotation in front of each norm's readers is one product: the way back is absorbed.
        products, kind = 2 * plan.shape.layers, "explicit rotations, D x D (if really run)"
    return Extras(kind, products, products * D * D * COUNTED_BYTES)


def _low_rank_extras(low_rank: LowRank) -> Extras:
    """A pair is one product more for each projection, and is read whole."""
    pairs = [pair for layers in low_rank.values() for readers in layers for pair in readers]
    if not pairs:
        return Extras("none", 0, 0)
    least, most = min(pair.rank for pair in pairs), max(pair.rank for pair in pairs)
    ranks = f"rank {least}" if least == most else f"rank {least} to {most}"
    weights = sum(pair.left.numel() + pair.right.numel() for pair in pairs)
    return Extras(f"low-rank remainders, {ranks}", len(pairs), weights * COUNTED_BYTES)


def account(plan: Plan) -> dict[str, Any]:
    """The planned accounting of a plan. Levels and shares are fractions, bytes are per token."""
    shape = plan.shape
    planned = {s: tuple(plan.levels.planned(s, i, shape) for i in range(shape.layers)) for s in SITES}
    projections = shape.layers * shape.layer_weights * COUNTED_BYTES
    level, added = byte_weighted(planned, shape, plan.levels.skips), extras(plan)
    return {
        "level_asked": plan.levels.asked,
        "level_byte_weighted": level,
        "level_paper_count": _paper_count(planned, shape),
        "level_planned": planned,
        "coefficients": plan.levels.source,
        "bytes_a_weight": COUNTED_BYTES,
        "projection_bytes": projections,
        "extras": asdict(added),
        "extras_share": added.bytes / projections,
        "net_bytes_share": 1.0 - level + added.bytes / projections,
    }


def _paper_count(levels: dict[str, tuple[float, ...]], shape: ModelShape) -> float:
    weight = {site: shape.sites[site].width * shape.sites[site].readers for site in SITES}
    skipped = sum(level * weight[site] for site in SITES for level in levels[site])
    return skipped / (shape.layers * sum(weight.values()))
