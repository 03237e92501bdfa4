"""The schema of a run: names, types and ranges of every setting, checked before anything is loaded.

Hydra composes ``conf/`` into one tree; :meth:`RunConfig.parse` turns that tree into this frozen object or
raises one readable error. Settings that change a result have no default here: their values are in
``conf/``. This module imports neither torch nor Hydra.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from larosa.config.allocation import AllocationConfig
from larosa.config.base import ConfigError as ConfigError
from larosa.config.base import Filename, Seed, readable
from larosa.config.base import Level as Level
from larosa.config.base import Strict as Strict
from larosa.config.choices import choice
from larosa.config.diagnostics import DiagnosticsConfig
from larosa.config.evaluation import GENERATING as GENERATING
from larosa.config.evaluation import EvaluationConfig as EvaluationConfig
from larosa.config.evaluation import PerplexityConfig as PerplexityConfig
from larosa.config.evaluation import SpeedConfig as SpeedConfig
from larosa.config.evaluation import ZeroShotConfig as ZeroShotConfig
from larosa.config.export import ExportConfig
from larosa.config.method import Method
from larosa.config.method import MethodConfig as MethodConfig
from larosa.config.model import ModelConfig as ModelConfig
from larosa.config.quantization import QuantizationConfig as QuantizationConfig
from larosa.config.texts import CalibrationText, sequences_of
from larosa.config.texts import TextConfig as TextConfig
from larosa.config.tuning import CoefficientsConfig as CoefficientsConfig
from larosa.config.tuning import TuningConfig as TuningConfig
from larosa.records.packaged import locate


class CalibrationConfig(Strict):
    """The block of calibration tokens, `sequences` x `length`."""

    text: CalibrationText
    sequences: int = Field(ge=1)
    """Number of sequences."""
    length: int = Field(ge=2)
    """Tokens per sequence."""
    sampling: Literal["random", "first"]
    """`random`: seeded random windows of the joined text, without overlap. `first`: its beginning."""
    batch_size: int = Field(ge=1)
    """Sequences per forward pass."""
    probe_sequences: int = Field(ge=1)
    """Calibration sequences on which thresholds and output errors of the sparse model are measured."""

    @model_validator(mode="after")
    def _enough_for_every_part(self) -> CalibrationConfig:
        sequences_of(self.text, self.sequences)
        return self


class ScheduleConfig(Strict):
    """From one number, the target sparsity, to a level per layer and site."""

    name: str
    """Name in records."""
    kind: Literal["uniform", "coefficients", "paper_table11", "file"]
    """`uniform`: one level at all sites. `coefficients`: those given. `paper_table11`: those of `table`. `file`: those
    of the file `path`."""
    coefficients: CoefficientsConfig | None
    """`kind=coefficients`: one per site."""
    table: dict[str, CoefficientsConfig]
    """`kind=paper_table11`: a row per model. Other models follow the paper's constraints from a1 = a3 = 0.8."""
    path: Filename | None
    """`kind=file`: a schedule file (:mod:`larosa.sparsity.schedule_file`). `mine` is schedules/MODEL/mine.json."""
    metric: Literal["weight_bytes", "nominal"]
    """What the target counts. `weight_bytes`: levels are rescaled until the weight sparsity is the target. `nominal`:
    the paper's count, not rescaled."""

    @model_validator(mode="after")
    def _complete(self) -> ScheduleConfig:
        if self.kind == "coefficients" and self.coefficients is None:
            raise ValueError("schedule.kind=coefficients needs schedule.coefficients with h1, h2, h3 and h4")
        if self.kind == "file" and not self.path:
            raise ValueError("schedule.kind=file needs schedule.path=NAME or FILE.json")
        return self


class TokenPolicyConfig(Strict):
    """Which tokens are sparsified."""

    kind: Literal["all", "skip_first_n", "last_fraction", "decode_only"]
    """`all`: every token. `skip_first_n`: all but the first `n` of a sequence. `last_fraction`: the last `fraction` of
    a prompt, and generated tokens. `decode_only`: generated tokens."""
    n: int = Field(ge=0)
    """`kind=skip_first_n`: tokens that stay dense."""
    fraction: float = Field(gt=0.0, le=1.0)
    """`kind=last_fraction`: sparse fraction of a prompt."""


class TrackingConfig(Strict):
    """Weights & Biases; the record on disk is complete without it."""

    mode: Literal["offline", "online", "off"]
    """`offline`: files that `wandb sync` sends later. `online`: sent during the run. `off`: none."""
    project: str
    """W&B project."""
    entity: str | None
    """W&B user or team; null: the default one."""
    group: str | None
    """W&B group of the runs of a sweep."""


def _named_methods(given: Any) -> Any:
    """Names of `conf/method` -> their settings, by name. A dictionary of settings is returned unchanged."""
    if given is None or given == "none":
        return {}
    if isinstance(given, Mapping):
        return given
    names = [given] if isinstance(given, str) else list(given)
    return {str(name): choice("method", str(name)) for name in names}


class RunConfig(Strict):
    """All settings of a run."""

    model: ModelConfig
    calibration: CalibrationConfig
    sparsity: Level
    """Target sparsity, a fraction. `schedule.metric` says what it counts."""
    schedule: ScheduleConfig
    token_policy: TokenPolicyConfig
    method: Method
    quantization: QuantizationConfig
    baseline: Annotated[dict[str, Method], BeforeValidator(_named_methods)]
    """Names of `conf/method` that are measured beside the method, at its weight sparsity; `[]`: none."""
    texts: dict[str, TextConfig]
    evaluation: EvaluationConfig
    allocation: AllocationConfig
    diagnostics: DiagnosticsConfig
    export: ExportConfig
    tracking: TrackingConfig
    backend: Literal["auto", "triton", "reference"]
    """What decodes with `evaluation=speed`. `auto`: triton, on a GPU. `reference`: torch, whose times are no speed
    measurement; records, tables and logs mark them."""
    seed: Seed
    """Seed of calibration windows, random bases, drawn examples and random weights."""
    output: Filename
    """Folder of the records; of `larosa export`, the folder that it writes."""
    figures: str | None
    """Function that draws the figures of a run, as `package.module.function`; null: none. It takes the records by label
    and a folder, and returns the files that it wrote."""
    force: bool
    """`true`: measure again what a record already holds."""

    @model_validator(mode="after")
    def _possible(self) -> RunConfig:
        scores = bool(self.evaluation.zero_shot.tasks)
        likelihoods = set(self.evaluation.zero_shot.tasks) - GENERATING
        if self.token_policy.kind == "decode_only" and (self.texts or likelihoods):
            raise ValueError(
                "token_policy=decode_only sparsifies generated tokens only, so perplexity and log-likelihood "
                "tasks would measure the dense model; choose another token policy, or texts=none and "
                "evaluation.zero_shot.tasks=[] or tasks that generate, e.g. gsm8k_cot"
            )
        if self.token_policy.kind == "last_fraction" and scores and self.evaluation.zero_shot.batch_size > 1:
            raise ValueError(
                "token_policy=last_fraction needs evaluation.zero_shot.batch_size=1: lm-eval pads batches, and "
                "padding would count as tokens"
            )
        lengths = (self.calibration.length, self.evaluation.perplexity.length)
        if self.token_policy.kind == "skip_first_n" and self.token_policy.n >= min(lengths):
            raise ValueError(
                f"token_policy.n={self.token_policy.n} leaves no sparse token in blocks of {min(lengths)}: "
                "it must be smaller than calibration.length and evaluation.perplexity.length"
            )
        if self.calibration.probe_sequences > self.calibration.sequences:
            raise ValueError("calibration.probe_sequences must not exceed calibration.sequences")
        return self

    @model_validator(mode="after")
    def _multiplied(self) -> RunConfig:
        if self.evaluation.float32_matmul == "tf32" and self.model.dtype not in ("float32", "auto"):
            raise ValueError(
                f"evaluation.float32_matmul=tf32 is for float32 models, not {self.model.dtype}: leave it at highest"
            )
        return self

    @model_validator(mode="after")
    def _timed(self) -> RunConfig:
        if self.evaluation.speed is None:
            return self
        if self.model.dtype == "float64":
            raise ValueError("evaluation.speed times bfloat16, float16 or float32: set model.dtype")
        if self.token_policy.kind not in ("all", "decode_only"):
            raise ValueError(
                f"evaluation.speed decodes with token_policy=all or decode_only, not {self.token_policy.kind}"
            )
        if any(m.low_rank_ratio or m.low_rank_ratio_grid for m in (self.method, *self.baseline.values())):
            raise ValueError("evaluation.speed: the decoder does not run the low-rank part of r_sparse")
        if any(method.bias_compensation != "none" for method in (self.method, *self.baseline.values())):
            raise ValueError(
                "evaluation.speed: the decoder has no compensating biases; set method.bias_compensation=none"
            )
        self._timed_quantised()
        if self.evaluation.speed.parity_tokens > self.calibration.length:
            raise ValueError("evaluation.speed.parity_tokens must not exceed calibration.length")
        return self

    def _timed_quantised(self) -> None:
        if self.quantization.weights == "w4" and self.quantization.group_axis == "in":
            raise ValueError(
                "evaluation.speed: the decoder runs w4 in groups along the output; set quantization.group_axis=out "
                "(quantization=w4_rtn), or measure quality without evaluation=speed"
            )
        if self.quantization.weights != "none" and any(
            method.form == "simulated" for method in (self.method, *self.baseline.values())
        ):
            raise ValueError(
                "evaluation.speed: the decoder multiplies simulated rotations into the weights, which leaves no "
                "quantised format; take an absorbed or online form, or quantization=none"
            )
        scored = any(method.norm_exponent for method in (self.method, *self.baseline.values()))
        if self.quantization.weights != "none" and scored:
            raise ValueError(
                "evaluation.speed: the decoder folds column norms into the weights, which leaves no quantised format; "
                "take quantization=none or method.importance=magnitude"
            )

    def with_model(self, model: ModelConfig) -> RunConfig:
        """The same run of a model about which more is known, checked again. Raises ConfigError."""
        try:
            given = model.model_copy(update={"shape": self.model.shape})  # which the settings may have to leave out
            type(self).model_validate({**dict(self), "model": given})
        except ValidationError as error:
            raise ConfigError(readable(error, type(self))) from None
        return self.model_copy(update={"model": model})

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> RunConfig:
        """Check a plain tree (OmegaConf's container). Raises ConfigError with one line per problem."""
        try:
            config = cls.model_validate(tree)
        except ValidationError as error:
            raise ConfigError(readable(error, cls)) from None
        path = schedule_path(config.schedule.path, config.model.name)
        path = locate(path) if path and config.schedule.kind == "file" else path
        return config.model_copy(update={"schedule": config.schedule.model_copy(update={"path": path})})


def schedule_path(given: str | None, model: str) -> str | None:
    """`mine` is `schedules/<model>/mine.json`; with a folder or `.json` it is a path.

    A file that is read is looked for in the working directory, then among those that come with larosa.
    """
    if not given or given.endswith(".json") or "/" in given or "\\" in given:
        return given
    return f"schedules/{model}/{given}.json"
