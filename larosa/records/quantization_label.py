"""What of a run's weights is quantised, in the words of rows, labels and captions.

`w8`, `w8 gptq`, `w4 rtn`, `w4 gptq`, `w4 awq`; `along outputs` where 64 outputs of one input share a scale, the other
w4 have groups of 64 along the input. `none` also of records from before there was any.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Record = dict[str, Any]

NONE = "none"
GROUP = 64
"""Weights of a group of w4 (larosa.models.formats)."""
_FORMATS = {
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53": "4 bits in blocks of 32 (Q4_1)",
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32": "4 to 6 bits (Q4_K_M)",
    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046": "4 to 6 bits (Q4_K_M)",
}
"""SHA-256 of a GGUF file -> the format of its weights."""


def name(config: Record) -> str:
    """Of a run's settings."""
    quantization = config.get("quantization") or {}
    parts = [
        _weights(quantization),
        *(f"{quantization[part]} {part}" for part in ("head", "adapters") if quantization.get(part, NONE) != NONE),
    ]
    return ", ".join(part for part in parts if part != NONE) or NONE


def _weights(quantization: Record) -> str:
    weights = str(quantization.get("weights", NONE))
    if weights == "w4":
        return f"w4 {quantization['quantizer']}{' along outputs' if quantization['group_axis'] == 'out' else ''}"
    return f"{weights} {quantization['quantizer']}" if calibrated({"quantization": quantization}) else weights


def calibrated(config: Record) -> bool:
    """Whether the quantiser read the calibration tokens."""
    quantization = config.get("quantization") or {}
    return str(quantization.get("weights", NONE)) != NONE and quantization["quantizer"] != "rtn"


def settings(config: Record) -> str:
    """What shapes the weights besides the name, in words; empty where nothing was set."""
    quantization = config["quantization"] if calibrated(config) else {}
    said = {
        "sequences": "calibrated on the first {} sequences",
        "attention_sink_weight": "first tokens count {:g} times",
    }
    return ", ".join(
        words.format(quantization[key]) for key, words in said.items() if quantization.get(key) is not None
    )


def labelled(label: str, config: Record) -> str:
    """A method's label, with what is quantised as one of its settings."""
    return joined(label, name(config))


def joined(label: str, quantization: str) -> str:
    """The same, of what :func:`name` gives."""
    if quantization == NONE:
        return label
    return f"{label[:-1]}, {quantization})" if label.endswith(")") else f"{label} ({quantization})"


def caption(records: Iterable[Record]) -> str:
    """What was quantised, and the format of the source; nothing where no record is quantised."""
    records = list(records)
    names = sorted({name(record["config"]) for record in records} - {NONE})
    if not names:
        return ""
    groups = f", w4 in groups of {GROUP}" if any("w4" in label for label in names) else ""
    files = sorted({str(record["model"]["gguf_sha256"]) for record in records if "gguf_sha256" in record["model"]})
    source = "".join(
        f"; the source was already quantised, to {_FORMATS.get(file_type, 'a format that is not recorded')}"
        for file_type in files
    )
    told = sorted(
        {f"; {name(config)}: {words}" for config in (r["config"] for r in records) if (words := settings(config))}
    )
    return f"weights quantised after rotation ({', '.join(names)}{groups}{''.join(told)}{source})"
