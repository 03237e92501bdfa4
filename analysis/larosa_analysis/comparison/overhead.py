"""The overhead that a method would have on LLaMA2-7B, from its overhead on the model that was measured.

D x D products keep their number per layer and their bytes per weight: fraction = products per layer * bytes of one /
(2 D^2) * D'^2 / layer weights', with D' = 4096 and I' = 11008. Other overhead does not scale so: a record states it
(`overhead_fraction_llama2_7b`), or nothing is stated.
"""

from __future__ import annotations

from larosa_analysis.records.entry import Record

_HIDDEN, _INTERMEDIATE = 4096, 11008
_ADAPTER_7B = _HIDDEN**2 / (4 * _HIDDEN**2 + 3 * _HIDDEN * _INTERMEDIATE)


def adapter_fraction(record: Record) -> float:
    """One D x D per layer at the precision of the weights, as a fraction of the seven projections."""
    shape, counted = record["config"]["model"]["shape"], record["metrics"]["accounting"]
    weights = counted["projection_bytes"] / counted["bytes_per_weight"]
    return float(shape["num_hidden_layers"] * shape["hidden_size"] ** 2 / weights)


def overhead_at_llama2_7b(record: Record) -> float | None:
    """Overhead as a share of the projection bytes at LLaMA2-7B's proportions; None where they do not tell."""
    counted = record["metrics"]["accounting"]
    stated = counted.get("overhead_fraction_llama2_7b")
    if stated is not None:
        return float(stated)
    if not counted["overhead"]["bytes"]:
        return 0.0
    if "D x D" not in counted["overhead"]["kind"]:
        return None
    return float(counted["overhead_fraction"] / adapter_fraction(record) * _ADAPTER_7B)
