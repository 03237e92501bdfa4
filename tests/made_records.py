"""Records made up from a committed one, for tests of tables and figures: clearly no measurements."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from conftest import CONF, ROOT
from larosa.records import checksum
from larosa_analysis.records.entry import read_lines
from larosa_analysis.records.outcomes import SEVEN, compact_score

Record = dict[str, Any]
CONDITIONS = {"created": "2000-01-01T00:00:00+00:00", "git": {"commit": "0" * 40, "dirty": False}}
PRESETS = {"larosa": "larosa/paper"}
_TOP_K = {"selector": "top_k", "ties": "strict", "rounding": "nearest"}
_OWN_SETTINGS: dict[str, Record] = {
    "magnitude": _TOP_K,
    "larosa": _TOP_K
    | {"form": "absorbed", "basis": "pca", "granularity": "layer", "group_size": 1, "rotation_dtype": "float64"}
    | {"transform_dtype": "model", "block_size": None, "tuning": None, "importance": "magnitude"},
}
"""Settings that a record of the method holds."""


def template() -> Record:
    """The committed record of magnitude Top-K at 50 %, uniform."""
    path = ROOT / "analysis" / "records" / "methods-smollm2.jsonl"
    return next(
        r for r in read_lines(path) if r["label"] == "magnitude" and r["config"]["schedule"]["name"] == "uniform"
    )


def made(
    method: str, level: float = 0.5, *, model: str = "llama3-8b", texts: tuple[str, ...] = ("wikitext2",),
    nats: float = 2.0, tasks: dict[str, list[int]] | None = None, calibration: str = "wikitext2", **more: Any,
) -> Record:  # fmt: skip
    """A run of `method` (`magnitude`, `teal`, `larosa`, ...) with `nats` a token, the same in every block but noise."""
    record = copy.deepcopy(template())
    shape = yaml.safe_load((CONF / "model" / f"{model}.yaml").read_text())["shape"]
    schedule = {"dense": "uniform", "larosa": "paper"}.get(method, "uniform")
    record["config"]["model"] |= {"name": model, "shape": shape}
    record["config"]["method"] = {"name": method, "preset": PRESETS.get(method, method)} | _OWN_SETTINGS.get(method, {})
    record["config"]["schedule"] |= yaml.safe_load((CONF / "schedule" / f"{schedule}.yaml").read_text())
    record["config"]["texts"] = {}
    record["model"] |= {"name": model}
    record["label"] = {"larosa": "larosa/paper (absorbed, pca, per layer)"}.get(method, method)
    record["data"] = {"texts": {}, "calibration": {"text": calibration, "tokens": 1000, "sha256": calibration}}
    record["metrics"] |= {"perplexity": {}, "achieved_sparsity": {}, "zero_shot": {}}
    for text in texts:
        _text(record, text, nats, level, method)
    counted = {"target_sparsity": level, "weight_sparsity": level, "nominal_sparsity": level, "overhead_fraction": 0.0}
    record["metrics"]["accounting"] |= counted
    record["metrics"]["zero_shot"] = {task: score(task, right) for task, right in (tasks or {}).items()}
    record |= CONDITIONS | more
    record["identity"] = f"{model}-{method}-{level}-{calibration}-{record['created']}-{sorted(tasks or {})}"
    return record


def _text(record: Record, text: str, nats: float, level: float, method: str) -> None:
    noise = np.random.default_rng(len(text)).normal(0, 0.1, 20)
    blocks = (1023 * (nats + noise)).tolist()
    perplexity = float(np.exp(np.mean(blocks) / 1023))
    record["metrics"]["perplexity"][text] = {
        "block_length": 1024, "block_nll_nats": blocks, "perplexity": perplexity, "predicted_tokens": 20 * 1023,
        "standard_error": 0.05, "tokens": 20480,
    }  # fmt: skip
    sites = dict.fromkeys(("h1", "h2", "h3", "h4"), level)
    record["metrics"]["achieved_sparsity"][text] = {
        "weight_sparsity_mean": level, "weight_sparsity_std_over_tokens": 0.02, "weight_sparsity_min": 0.9 * level,
        "weight_sparsity_max": min(1.0, 1.1 * level), "site_mean": sites, "sparse_tokens": 20480,
        "site_std_over_tokens": dict.fromkeys(sites, 0.01),
    }  # fmt: skip
    record["data"]["texts"][text] = {"sha256": text, "tokens": 20480, "text": text}


def score(task: str, correct: list[int], ids: list[int] | None = None, **more: Any) -> Record:
    """A compact score."""
    value, count = float(np.mean(correct)), len(correct)
    return compact_score(
        {
            "task": task, "metric": "acc", "value": value, "examples": count, "num_available": 1000, "split": "test",
            "standard_error": float(np.sqrt(value * (1 - value) / (count - 1))), "source": "made up",
            "document_ids": list(range(count)) if ids is None else ids, "correct": [float(c) for c in correct],
        }
        | more
    )  # fmt: skip


def seven(share: float, seed: int = 0, count: int = 100) -> dict[str, list[int]]:
    """Outcomes of the seven tasks, about `share` right; a larger share is right wherever a smaller one is."""
    draws = np.random.default_rng(seed).random((len(SEVEN), count))
    return {task: (row < share).astype(int).tolist() for task, row in zip(SEVEN, draws, strict=True)}


def diagnostics(model: str = "smollm2-135m") -> dict[str, Record]:
    """One of each kind, by file name."""
    random, levels = np.random.default_rng(0), [0.25, 0.5, 0.75]
    thresholds = {
        site: [[level * (1 + 0.1 * i) for i in range(6)] for level in levels] for site in ("h1", "h2", "h3", "h4")
    }
    height = np.abs(random.normal(size=(12, 16))).round(3).tolist()
    values: dict[str, Record] = {
        "surface": {"layer": 3, "site": "h1", "tokens": 48, "channels": 64, "before": height, "after": {"pca": height}},
        "thresholds": {
            "method": "teal", "levels": levels, "calibrated": thresholds,
            "needed": {"site": "h1", "layer": 3, "level": 0.5, "calibrated": 0.5, "per_token": [0.4, 0.5, 0.7]},
        },
        "error_curve": {
            "layer": 3, "site": "h4", "levels": levels, "theory": [0.09, 0.27, 0.53],
            "measured": {"teal": [0.08, 0.25, 0.5], "larosa/paper (absorbed, pca, per layer)": [0.07, 0.2, 0.4]},
        },
        "covariance": {
            "sets": ["wikitext2", "lambada"], "site": "h1", "cosine": [[1.0, 0.9876], [0.9876, 1.0]],
            "by_layer": {"wikitext2|lambada": [0.99, 0.98]},
        },
    }  # fmt: skip
    common = CONDITIONS | {"schema": 2, "model": model, "versions": {}, "hardware": {}, "data": {}}
    return {f"inspect-{kind}.json": common | {"kind": kind, "values": own} for kind, own in values.items()}


def timings(lengths: tuple[int, ...] = (32, 128)) -> Record:
    """The committed decode record with its rows repeated at several output lengths."""
    name = "decode-llama2-7b-h100-2026-11-23.json"
    found: Record = checksum.read(ROOT / "kernels" / "benchmarks" / "records" / name)
    found["rows"] = [row | {"new_tokens": length} for length in lengths for row in found["rows"]]
    return found


def write(folder: Path, runs: list[Record], diagnosed: dict[str, Record] | None = None) -> Path:
    """A folder of records as `larosa_analysis.build` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "runs.jsonl").write_text("".join(sealed(record) + "\n" for record in runs))
    for name, record in (diagnosed or {}).items():
        (folder / name).write_text(sealed(record))
    return folder


def sealed(record: Record) -> str:
    """A record as a file holds it, with its checksum."""
    return json.dumps(checksum.sealed(record))
