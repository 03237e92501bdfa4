"""A figure with what stands below it."""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from larosa.commands import typed
from larosa.records.packaged import in_checkout
from larosa_analysis.records.conditions import commit, device
from larosa_analysis.records.entry import Record


@dataclass(frozen=True)
class Drawn:
    """One figure of the paper, drawn from our records, or what is missing of it."""

    name: str
    """Of its files."""
    title: str
    caption: str
    figure: Figure | None
    missing: str = ""
    """What is not there, and the command that makes it."""


def conditions_of(record: Record) -> str:
    """The conditions of a record of diagnostics, as far as it states them."""
    data = record.get("data") or {}
    parts = [", ".join(str(record[key]) for key in ("model", "dtype") if key in record)]
    for name, source in data.items() if isinstance(data, dict) else ():
        if isinstance(source, dict) and "tokens" in source:
            text = f" of {source['text']}" if source.get("text") != name else ""
            parts.append(f"{name}: {source['tokens']} tokens{text}")
    if record.get("hardware"):
        parts.append(f"measured on {device({'device': record.get('device') or '', 'hardware': record['hardware']})}")
    versions = record.get("versions") or {}
    parts.append(", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions))
    parts.append(f"commit {commit(record)}" if record.get("git") else "")
    parts.append(str(record["created"])[:10])
    return "; ".join(part for part in parts if part) + "."


_SETTINGS = {
    "surface": "method=larosa/paper baseline=none",
    "thresholds": "method=teal baseline=none sparsity=0.5",
    "error_curve": "method=larosa/paper 'baseline=[teal,magnitude]'",
    "covariance": "'texts=[lambada,hellaswag,gsm8k]'",
}


def diagnose_command(kind: str, model: str) -> str:
    """The command that makes diagnostics of a model: in a checkout where `larosa_analysis.build` finds them."""
    place = " output=analysis/records" if in_checkout() else ""
    return f"{typed('diagnose')} {kind} model={model} {_SETTINGS[kind]}{place}"
