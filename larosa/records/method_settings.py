"""The settings of a recorded method. A record holds those that its method has; the others have the values below.

They are the defaults of :mod:`larosa.config.method`, for code that reads records without torch and pydantic.
"""

from __future__ import annotations

from typing import Any

DEFAULTS: dict[str, Any] = {
    "form": "plain",
    "basis": "identity",
    "granularity": "layer",
    "group_size": 1,
    "rotation_dtype": "float64",
    "transform_dtype": "model",
    "block_size": None,
    "tuning": None,
    "selector": "top_k",
    "ties": "strict",
    "rounding": "nearest",
    "importance": "magnitude",
    "importance_exponent": 1.0,
    "bias_compensation": "none",
    "low_rank_ratio": 0.0,
    "low_rank_ratio_grid": [],
}
DEFAULTS_OF: dict[str, dict[str, Any]] = {
    "teal": {"selector": "threshold"},
    "cats": {"selector": "threshold"},
    "wina": {"granularity": "sublayer", "importance": "column_norm"},
}
"""Method -> what it sets otherwise and lets nobody choose."""


def method_of(config: dict[str, Any]) -> dict[str, Any]:
    """Every setting of a record's method, its `name` and `preset` among them."""
    method: dict[str, Any] = config["method"]
    return DEFAULTS | DEFAULTS_OF.get(method["name"], {}) | method
