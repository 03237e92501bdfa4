"""Compact records as tables read them: one line of JSON each, made comparable or refused.

A table holds records of one condition: schema and meaning, model, dtype, what is quantised, evaluation tokens and block
length, and of all but the dense model, which needs neither, the calibration tokens and the token policy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from larosa.records import checksum, quantization_label
from larosa.records.method_settings import method_of

Record = dict[str, Any]
SCHEMA = 2
_OFFICIAL = {"h1": 0.8, "h2": 1.2, "h3": 0.8, "h4": 1.2}
_SAME = 1e-4
"""Two measurements of one setting agree if their perplexities differ by less, relatively."""


class RecordsError(Exception):
    """Records cannot stand in one table, or one is missing."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One record, read: sparsities and overheads are fractions."""

    record: Record
    identity: str
    label: str
    """The method's, with what is quantised among its settings."""
    quantization: str
    """What is quantised, as :mod:`larosa.records.quantization_label` names it."""
    schedule: str
    target: float
    """The target sparsity."""
    overhead: float
    """Bytes that the method adds at run time / bytes of the seven projections."""
    achieved: dict[str, float]
    """Text -> weight sparsity, mean over its tokens."""
    spread: dict[str, float]
    """Text -> standard deviation of the weight sparsity over tokens."""
    nll: dict[str, NDArray[np.float64]]
    """Text -> nats of each block, [N]."""
    predicted: dict[str, int]
    """Text -> predicted tokens per block."""

    @classmethod
    def of(cls, record: Record) -> Entry:
        """Read a compact record. Raises RecordsError if it is none, or holds NaN where likelihoods belong."""
        try:
            metrics = record["metrics"]
            perplexity, measured, counted = metrics["perplexity"], metrics["achieved_sparsity"], metrics["accounting"]
            entry = cls(
                record=record,
                identity=record["identity"],
                label=quantization_label.labelled(record["label"], record["config"]),
                quantization=quantization_label.name(record["config"]),
                schedule=_schedule(record["config"]),
                target=counted["target_sparsity"],
                overhead=counted["overhead_fraction"],
                achieved={text: measured[text]["weight_sparsity_mean"] for text in perplexity},
                spread={text: measured[text]["weight_sparsity_std_over_tokens"] for text in perplexity},
                nll={text: np.array(f["block_nll_nats"], dtype=np.float64) for text, f in perplexity.items()},
                predicted={text: f["predicted_tokens"] // len(f["block_nll_nats"]) for text, f in perplexity.items()},
            )
        except (KeyError, TypeError, ZeroDivisionError) as error:
            named = record.get("identity") if isinstance(record, dict) else None
            raise RecordsError(
                f"record {named} is not a compact record ({type(error).__name__}: {error}); make the file with "
                "`python -m larosa_analysis.compact RUNS_DIR OUT.jsonl`"
            ) from error
        unusable = [text for text, nats in entry.nll.items() if not np.isfinite(nats).all()]
        if unusable:
            raise RecordsError(
                f"{entry.name}: its likelihoods on {', '.join(unusable)} are not finite: measure it again"
            )
        return entry

    @property
    def family(self) -> str:
        """The method's name without its settings."""
        return str(self.record["config"]["method"]["name"])

    @property
    def name(self) -> str:
        """How messages name the record."""
        target = "" if self.family == "dense" else f" at {100 * self.target:g} %, {self.schedule}"
        return f"{self.label}{target} ({self.identity})"

    @property
    def weight_sparsity(self) -> float:
        """The weight sparsity: achieved, mean over texts; of a record without texts, planned."""
        if not self.achieved:
            return float(self.record["metrics"]["accounting"]["weight_sparsity"])
        return float(np.mean(list(self.achieved.values())))

    def only(self, texts: list[str]) -> Entry:
        """The entry on some texts. Raises RecordsError if it was not measured on one."""
        missing = [text for text in texts if text not in self.nll]
        if missing:
            raise RecordsError(
                f"{self.name} was not measured on {', '.join(missing)}: measure it there, or name the texts of the "
                "table with --texts"
            )
        return replace(
            self,
            achieved={text: self.achieved[text] for text in texts},
            spread={text: self.spread[text] for text in texts},
            nll={text: self.nll[text] for text in texts},
            predicted={text: self.predicted[text] for text in texts},
        )


def _schedule(config: dict[str, Any]) -> str:
    """A schedule's name; a file's is its own, and coefficients that a name does not tell stand with it."""
    schedule = config["schedule"]
    name = PurePath(schedule["path"]).name if schedule["path"] else schedule["name"]
    if schedule["kind"] == "coefficients" and (name, schedule["coefficients"]) != ("official", _OFFICIAL):
        given = (f"{site} {alpha:g}" for site, alpha in schedule["coefficients"].items() if alpha is not None)
        name = f"{name} ({', '.join(given)})"
    return name if schedule["metric"] == "weight_bytes" else f"{name}, {schedule['metric']}"


def read_lines(path: Path) -> list[Record]:
    """The records of a `.jsonl` file, without their checksums. Raises RecordsError that names the line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise RecordsError(f"{path.name} is not UTF-8: {error}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(checksum.parsed(line))
        except checksum.DamagedError as error:
            raise RecordsError(
                f"{path.name}, line {number}: {error}. Delete the line, and make it again from its result.json with "
                "`python -m larosa_analysis.compact RUNS_DIR OUT.jsonl`"
            ) from error
    return records


def load(paths: list[Path], texts: list[str] | None = None) -> tuple[list[Entry], list[str]]:
    """Comparable entries, repeated measurements excluded, and the texts (default: all, which every record must have).

    Raises RecordsError naming both records where two do not fit in one table.
    """
    entries = [Entry.of(record) for path in paths for record in read_lines(path)]
    if not entries:
        raise RecordsError(f"{', '.join(path.name for path in paths)}: no record")
    texts = texts or sorted({text for entry in entries for text in entry.nll})
    entries = [entry.only(texts) for entry in entries]
    require_comparable(entries)
    return distinct(entries), texts


def require_comparable(entries: list[Entry]) -> None:
    """Raise RecordsError that names two records of different conditions, and the condition."""
    first: dict[str, tuple[Any, Entry]] = {}
    for entry in entries:
        for condition, value in _conditions(entry).items():
            expected, other = first.setdefault(condition, (value, entry))
            if value != expected:
                raise RecordsError(
                    f"{other.name} and {entry.name} differ in {condition}: {expected} and {value}. A table needs one; "
                    "give the others a table of their own"
                )
    if first["schema"][0] != SCHEMA:
        raise RecordsError(f"{entries[0].name} has schema {first['schema'][0]}, this code reads {SCHEMA}")


def _conditions(entry: Entry) -> dict[str, Any]:
    record, config = entry.record, entry.record["config"]
    weights = {key: value for key, value in record["model"].items() if key != "device"}
    if weights["source"] == "random":
        weights["seed"] = config["seed"]
    conditions: dict[str, Any] = {
        "schema": record["schema"],
        "semantics_version": record["semantics_version"],
        "model": weights.pop("name"),
        "dtype": weights.pop("dtype"),
        "weights": weights,
        "what is quantised": entry.quantization,
        "settings of the quantiser": quantization_label.settings(config),
    }
    for text in entry.nll:
        conditions[f"evaluation tokens of {text} (SHA-256)"] = record["data"]["texts"][text]["sha256"]
        conditions[f"block length of {text}"] = record["metrics"]["perplexity"][text]["block_length"]
    if entry.family != "dense":
        conditions["token policy"] = config["token_policy"]
    if reads_calibration(config):
        conditions["calibration tokens (SHA-256)"] = record["data"].get("calibration", {}).get("sha256")
    return conditions


def reads_calibration(config: dict[str, Any]) -> bool:
    """Whether a run's result depends on the calibration tokens: not of the dense model, nor of Top-K in the model's own
    basis at levels that a formula gives."""
    method = method_of(config)
    own_basis = method["form"] == "plain" and method["selector"] == "top_k" and not method["low_rank_ratio_grid"]
    own_basis = own_basis and method["bias_compensation"] == "none"
    searched = config["schedule"]["kind"] == "file"
    uncalibrated = method["name"] == "dense" or (own_basis and not searched)
    return not uncalibrated or quantization_label.calibrated(config)


def distinct(entries: list[Entry]) -> list[Entry]:
    """One entry per setting, the newest of those that agree. Raises RecordsError where two do not."""
    by_setting: dict[Any, Entry] = {}
    for entry in sorted(entries, key=lambda e: (e.record["created"], e.identity)):
        dense = entry.family == "dense"
        key = (entry.label, None if dense else (entry.schedule, entry.target))
        other = by_setting.get(key)
        if other is not None and any(
            abs(entry.nll[text].sum() - other.nll[text].sum()) > _SAME * entry.predicted[text] * len(entry.nll[text])
            for text in entry.nll
        ):
            raise RecordsError(
                f"{other.name} and {entry.name} have one name but not one result: they differ in settings that the "
                "label does not tell; keep one of them"
            )
        by_setting[key] = entry
    return sorted(by_setting.values(), key=lambda e: (e.label, e.target, e.schedule))
