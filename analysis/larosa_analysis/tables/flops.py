"""Operations of a forward pass over 2048 tokens, from a model's shape, as the paper's Table 19 counts them.

    2 T (weights of the seven projections and the head) + 4 T^2 H d L        dense: products, and attention of T x T
    2 T D^2 for each product of D x D that a method adds                    larosa: one residual adapter per layer

This reproduces every correct entry of the printed table to 0.01 TFLOPs. What sparsity skips is not in it; at a weight
sparsity s a decoder skips s of the projections' part.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from larosa_analysis.records.entry import RecordsError

TOKENS = 2048
Shape = dict[str, Any]


def shapes(folder: Path) -> dict[str, Shape]:
    """Model name -> shape, of the named models of conf/model. Raises RecordsError for a folder without any."""
    every = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.yaml"))]
    models = [model for model in every if model["shape"] is not None]  # local and hub take any
    if not models:
        raise RecordsError(f"{folder} holds no model's shape: give the repository's conf/model with --models")
    return {model["name"]: model["shape"] for model in models}


def layer_weights(shape: Shape) -> int:
    """Weights of a layer's seven projections."""
    D, heads, kv_width = shape["hidden_size"], _heads(shape), shape["num_key_value_heads"] * _head_dim(shape)
    return int(2 * D * heads + 2 * D * kv_width + 3 * D * shape["intermediate_size"])


def _head_dim(shape: Shape) -> int:
    return int(shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"])


def _heads(shape: Shape) -> int:
    return int(shape["num_attention_heads"]) * _head_dim(shape)


def counted_by_width(shape: Shape, levels: dict[str, float]) -> float:
    """The paper's model-level sparsity: site sparsities weighted by width times the number of consumers of the site."""
    widths = {
        "h1": 3 * shape["hidden_size"], "h2": _heads(shape), "h3": 2 * shape["hidden_size"],
        "h4": shape["intermediate_size"],
    }  # fmt: skip
    return float(sum(levels[site] * width for site, width in widths.items()) / sum(widths.values()))


def tflops(shape: Shape, products: int = 0, level: float = 0.0) -> float:
    """Of TOKENS tokens, with `products` of D x D added in all and a fraction `level` of the projections skipped."""
    D, layers = shape["hidden_size"], shape["num_hidden_layers"]
    projections = 2 * TOKENS * layers * layer_weights(shape)
    head = 2 * TOKENS * shape["vocab_size"] * D
    attention = 4 * TOKENS**2 * _heads(shape) * layers
    return float(((1 - level) * projections + head + attention + 2 * TOKENS * products * D**2) / 1e12)


def adapters(shape: Shape, rotation: str) -> int:
    """Residual adapters of a forward pass, by how often the basis changes; the paper counts one per change."""
    return int(shape["num_hidden_layers"]) * {"layer": 1, "sublayer": 2}.get(rotation, 0)


def mlp_share(shape: Shape) -> float:
    """Bytes of up and down over those of the seven projections: the most that dropping neurons can save."""
    return float(2 * shape["hidden_size"] * shape["intermediate_size"] / layer_weights(shape))
