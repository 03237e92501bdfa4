"""What each of the paper's tables holds, as data: its file, its rows' keys, and the source of our value in a column.

A measure names the printed column and our source: `ppl:TEXT`, `acc7`, `task:NAME` (fractions shown as percents),
`level:SITE` (achieved), `count` (nominal sparsity, achieved), `bytes`, `flops`, `cosine:REFERENCE`.
"""

from __future__ import annotations

from dataclasses import dataclass

from larosa_analysis.records.outcomes import SEVEN
from larosa_analysis.tables.group import CALIBRATION, QUANTIZATION


@dataclass(frozen=True)
class Measure:
    """A pair of columns: printed, and ours."""

    printed: str
    source: str
    title: str
    printed_error: str = ""
    any_model: bool = True
    """Whether the sweep measures it for models that the paper has not; False for the paper's texts, and for tasks of
    reasoning models."""


@dataclass(frozen=True)
class Spec:
    """A table made of measured runs, one row per setting."""

    number: int
    title: str
    file: str
    keys: tuple[str, ...]
    """Columns that name a row, after the model."""
    measures: tuple[Measure, ...]
    spread: tuple[str, str] | None = None
    presets: tuple[str, ...] = ()
    """Presets with rows of their own besides the printed ones; empty: every method."""
    own_models: bool = True
    """Whether models that the paper has in no table get rows."""
    texts: bool = False
    """Whether perplexity on every text of the records is shown besides."""
    free: tuple[str, ...] = ()
    """Conditions that may differ within the table, because its rows vary them."""
    more_tasks: bool = False
    """Whether tasks that the table does not print are shown where records have them."""
    any_level: bool = False
    """Whether a model that the paper has not is shown at its own targets."""
    one_schedule: bool = False
    """Whether the rows of a sparsity must share their schedule, for a model that the paper has not."""

    @property
    def name(self) -> str:
        """`table02`."""
        return f"table{self.number:02d}"

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks whose scores the table needs."""
        sources = [measure.source for measure in self.measures]
        tasks = [source.partition(":")[2] for source in sources if source.startswith("task:")]
        return tuple(dict.fromkeys([*(SEVEN if "acc7" in sources else ()), *tasks]))

    @property
    def quantised(self) -> bool:
        """Whether rows tell what is quantised; such stand at sparsity 0 too, and no other table shows them."""
        return "quantization" in self.keys

    @property
    def perplexity(self) -> bool:
        """Whether the table needs perplexities."""
        return self.texts or any(measure.source.startswith("ppl:") for measure in self.measures)


_WIKITEXT = Measure("wikitext2_ppl", "ppl:wikitext2", "WikiText-2 perplexity", any_model=False)
_ACC7 = Measure("acc7", "acc7", "Acc7, %")
_MMLU = Measure("mmlu_5shot", "task:mmlu", "MMLU 5-shot, %")
_LEVEL = ("sparsity", "method")
_ZERO_SHOT = (*(Measure(task, f"task:{task}", f"{task}, %") for task in SEVEN), _ACC7, _MMLU)
_ZERO_SHOT_MODELS = (
    "llama2-7b", "llama2-70b", "llama3-8b", "llama3-70b", "mistral-7b", "qwen2.5-7b", "qwen2.5-72b",
)  # fmt: skip
_REASONING = (
    Measure("math500", "task:hendrycks_math500", "MATH-500, %", any_model=False),
    Measure("gpqa_diamond", "task:gpqa_diamond_cot_zeroshot", "GPQA-Diamond, %", any_model=False),
    Measure("aime24", "task:aime24", "AIME-24, %"),
)


def _sites() -> tuple[Measure, ...]:
    return tuple(Measure(f"{s}_pct", f"level:{s}", f"{s}, %", f"{s}_std") for s in ("h1", "h2", "h3", "h4"))


SPECS = (
    Spec(
        1, "Accuracy: mean of seven zero-shot tasks, and MMLU", "table01_accuracy", _LEVEL, (_ACC7, _MMLU),
        spread=("metric", "value"),
    ),
    Spec(2, "Perplexity of every method by sparsity", "table02_perplexity", _LEVEL, (_WIKITEXT,), texts=True),
    Spec(4, "Reasoning models", "table04_reasoning", _LEVEL, _REASONING, spread=("task", "accuracy"),own_models=False),
    Spec(
        5, "What decides which entries are dropped", "table05_sparsifier", _LEVEL,
        (*_sites(), Measure("model_pct", "count", "whole model, nominal sparsity, %"), _WIKITEXT),
        presets=("teal", "magnitude", "larosa/paper", "larosa/official", "larosa/tuned", "larosa/block_diagonal"),
        texts=True,
    ),
    Spec(
        6, "How often the basis changes", "table06_rotation", ("sparsity", "rotation"),
        (_WIKITEXT, Measure("tflops", "flops", "TFLOPs, 2048 tokens")),
        presets=("larosa/paper", "larosa/learned", "magnitude"), texts=True, one_schedule=True,
    ),
    Spec(
        7, "Calibration texts", "table07_calibration", ("sparsity", "method", "calibration"), (_WIKITEXT, _ACC7),
        presets=("larosa/paper", "larosa/official", "larosa/tuned", "larosa/block_diagonal", "teal"), texts=True,
        free=(CALIBRATION,), any_level=True,
    ),
    Spec(
        8, "Calibration texts for reasoning models", "table08_calibration_reasoning",
        ("sparsity", "method", "calibration"),
        (Measure("covariance_cosine", "cosine:alpaca", "cosine to the first set"), _ACC7, *_REASONING[:2]),
        presets=("larosa/paper", "larosa/tuned"), free=(CALIBRATION,), any_level=True,
    ),
    Spec(
        9, "On top of 4-bit weights", "table09_w4a16", ("sparsity", "quantization", "method"), (_WIKITEXT, _ACC7),
        presets=("larosa/paper", "magnitude"), texts=True, free=(QUANTIZATION,),
    ),
    Spec(
        10, "Coefficients at 60 %", "table10_coefficients",
        ("sparsity", "method", "alpha1", "alpha2", "alpha3", "alpha4"), (_WIKITEXT,),
        presets=("magnitude", "larosa/paper"), texts=True, any_level=True,
    ),
    *(
        Spec(
            12 + place, f"Zero-shot tasks: {model}", f"table{12 + place}_zeroshot_{model}", _LEVEL, _ZERO_SHOT,
            own_models=place == 0, more_tasks=True,
        )
        for place, model in enumerate(_ZERO_SHOT_MODELS)
    ),
)  # fmt: skip
