"""Which run fills a printed row, and what a run's own row says: one entry a key column.

LaRoSA as the paper prints it is `method=larosa/paper`; its Top-K rows are magnitude Top-K, with searched coefficients
(gs) where the schedule is not uniform.
"""

from __future__ import annotations

from collections.abc import Callable

from larosa.records.method_settings import method_of
from larosa_analysis.comparison.rows import TOLERANCE
from larosa_analysis.paper import Printed
from larosa_analysis.records.entry import Record
from larosa_analysis.records.run import Run
from larosa_analysis.tables.flops import counted_by_width

_PRESETS = {
    "dense": "dense",
    "reproduced dense": "dense",
    "cats": "cats",
    "teal": "teal",
    "larosa": "larosa/paper",
    "topk": "magnitude",
    "topk+gs": "magnitude",
}
_QUANTISERS = {"rtn": "w4 rtn", "gptq": "w4 gptq", "awq": "w4 awq"}
"""The paper's; ours have groups of 64 along the input."""
_SCHEDULES = ("paper", "constrained", "official", "uniform")
"""The order in which a printed row prefers them."""
_ROUNDING = 1e-9
_CONSTRAINT = 0.02
"""Printed coefficients are rounded to two digits, and one of them is multiplied by I / D."""


def alphas(run: Run) -> tuple[float, float, float, float] | None:
    """The coefficients asked for, those that follow filled in; None where layers differ."""
    schedule, shape = run.config["schedule"], run.config["model"]["shape"]
    if schedule["kind"] == "uniform":
        return 1.0, 1.0, 1.0, 1.0
    if schedule["kind"] == "file":
        return None
    given = schedule["coefficients"] or schedule["table"].get(run.model) or {"h1": 0.8, "h3": 0.8}
    a1, a3 = float(given["h1"]), float(given["h3"])
    ratio = shape["intermediate_size"] / shape["hidden_size"]
    a2, a4 = given.get("h2"), given.get("h4")
    return (
        a1,
        4 - 3 * a1 if a2 is None else float(a2),
        a3,
        (2 + ratio - 2 * a3) / ratio if a4 is None else float(a4),
    )


def of_pairs(run: Run, pairs: list[tuple[float, float]]) -> bool:
    """Whether a run has one of these pairs (alpha1, alpha3), and alpha2 and alpha4 by the paper's constraints."""
    coefficients, shape = alphas(run), run.config["model"]["shape"]
    if coefficients is None:
        return False
    a1, a2, a3, a4 = coefficients
    ratio = shape["intermediate_size"] / shape["hidden_size"]
    kept = abs(3 * a1 + a2 - 4) < _CONSTRAINT and abs(2 * a3 + ratio * a4 - 2 - ratio) < _CONSTRAINT
    return kept and any(abs(a1 - one) < _ROUNDING and abs(a3 - other) < _ROUNDING for one, other in pairs)


def rotation(run: Run) -> str:
    """How often the basis changes, in the paper's words; empty for other forms and for thresholds behind one."""
    method = method_of(run.config)
    if method["name"] == "magnitude":
        return "none"
    if (method["name"], method["form"]) != ("larosa", "absorbed") or method["selector"] == "threshold":
        return ""
    return "" if method["granularity"] == "group" else str(method["granularity"])


def _rotated(run: Run) -> str:
    if run.entry.family == "dense":
        return "dense"
    return rotation(run) + ("" if run.preset in ("magnitude", "larosa/paper") else f" ({run.preset})")


def calibration(run: Run) -> str:
    """The calibration set's name; `-` for the dense model."""
    if run.entry.family == "dense":
        return "-"
    return str((run.entry.record["data"].get("calibration") or {}).get("text", "-"))


def _alpha(place: int) -> Callable[[Run], str]:
    def shown(run: Run) -> str:
        coefficients = alphas(run)
        return "by layer" if coefficients is None else f"{coefficients[place]:.2f}"

    return shown


KEYS: dict[str, Callable[[Run], str]] = {
    "method": lambda run: run.method,
    "rotation": _rotated,
    "calibration": calibration,
    "quantization": lambda run: run.entry.quantization,
    **{f"alpha{place + 1}": _alpha(place) for place in range(4)},
}
"""Key column -> what a run says there."""


def named(key: str, printed: str) -> str:
    """How a printed key reads among rows of ours."""
    return {"method": _PRESETS, "quantization": _QUANTISERS}.get(key, {}).get(printed, printed)


def fits(run: Run, printed: Printed, keys: tuple[str, ...]) -> bool:
    """Whether a run is what a printed row says, its sparsity apart."""
    return all(_FITS.get(key, _equal)(run, key, printed[key]) for key in keys if key != "sparsity")


def _equal(run: Run, key: str, printed: str) -> bool:
    return KEYS[key](run) == named(key, printed)


def _method(run: Run, _key: str, printed: str) -> bool:
    uniform = run.config["schedule"]["kind"] == "uniform"
    if printed in ("topk", "topk+gs") and uniform == (printed == "topk+gs"):
        return False
    return run.preset == _PRESETS.get(printed)


def _rotation(run: Run, _key: str, printed: str) -> bool:
    if printed == "dense":
        return run.entry.family == "dense"
    return run.preset in ("magnitude", "larosa/paper") and rotation(run) == printed


_FITS: dict[str, Callable[[Run, str, str], bool]] = {"method": _method, "rotation": _rotation}


def metric(run: Run) -> str:
    """The metric of the run's target: `weight_bytes`, or `nominal` as the paper counts."""
    return "weight_bytes" if run.entry.family == "dense" else str(run.config["schedule"]["metric"])


def nominal_sparsity(run: Run) -> float:
    """The sparsity as the paper counts it: achieved, mean over texts; of a run without texts, planned."""
    metrics = run.entry.record["metrics"]
    levels = [counted_by_width(run.config["model"]["shape"], level["site_mean"]) for level in _achieved(metrics)]
    return sum(levels) / len(levels) if levels else float(metrics["accounting"]["nominal_sparsity"])


def _achieved(metrics: Record) -> list[Record]:
    """The achieved sparsity, by text; a dense run drops nothing."""
    return [level for level in metrics["achieved_sparsity"].values() if level.get("site_mean")]


def achieved_sparsity(run: Run) -> float:
    """The achieved sparsity by the run's own metric."""
    return nominal_sparsity(run) if metric(run) == "nominal" else run.entry.weight_sparsity


def stands(run: Run, target: float) -> bool:
    """Whether a run is at a target, within the tolerance of the method table."""
    return run.entry.family == "dense" or abs(achieved_sparsity(run) - target) <= TOLERANCE + _ROUNDING


def at(runs: list[Run], target: float, printed: bool = False) -> Run | None:
    """The run that represents a target: one that achieves it before one that only aimed at it.

    For a printed row the paper's metric and schedules come first. Otherwise the smallest perplexity, mean over the
    texts that all of them have.
    """
    near = [run for run in runs if stands(run, target)]
    aimed = [run for run in runs if abs(run.entry.target - target) <= _ROUNDING]
    runs = near or aimed
    texts = set.intersection(*(set(run.entry.nll) for run in runs)) if runs else set()
    if printed:
        return min(runs, key=lambda run: (metric(run) != "nominal", _preferred(run), *_rank(run, texts)), default=None)
    return min(runs, key=lambda run: _rank(run, texts), default=None)


def _preferred(run: Run) -> int:
    name = run.config["schedule"]["name"]
    return _SCHEDULES.index(name) if name in _SCHEDULES else len(_SCHEDULES)


def _rank(run: Run, texts: set[str]) -> tuple[float, int, str]:
    return mean_perplexity(run, texts), _preferred(run), run.entry.identity


def mean_perplexity(run: Run, texts: set[str]) -> float:
    """Over some texts that the run has; infinite without any."""
    perplexities = [run.entry.record["metrics"]["perplexity"][text]["perplexity"] for text in sorted(texts)]
    return sum(perplexities) / len(perplexities) if perplexities else float("inf")
