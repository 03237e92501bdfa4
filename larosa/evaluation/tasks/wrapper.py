"""lm-eval's wrapper around a model that is already in memory.

Log-probabilities are taken in float32 also for a bf16 or fp16 model, whose own softmax makes ties. Logits that are
not finite end the scoring: lm-eval would make an accuracy of them.
"""

from __future__ import annotations

import copy
import functools
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from larosa.models.finite import require_finite


class _Finite(LogitsProcessor):
    """Of `generate`: the scores of each next token as they are, once they are known to be finite."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return require_finite(scores, "a generated token", self._dtype)


def _checked(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
    output = model(*args, **kwargs)
    require_finite(output.logits, "a batch of lm-eval's requests")
    return output


def callable_of(model: PreTrainedModel) -> Any:
    """`model` for lm-eval, but no Module: it would tie a Module's weights, undoing a head rotated by itself.

    Calls raise EvaluationError where logits are not finite.
    """
    as_is: Any = functools.partial(_checked, model)
    generate: Any = model.generate
    as_is.device, as_is.config = model.device, model.config
    as_is.generate = functools.partial(generate, logits_processor=LogitsProcessorList([_Finite(model.dtype)]))
    return as_is


def wrap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Any:
    """lm-eval's wrapper of a model, whose bar shows although stderr is redirected."""
    from lm_eval.models.huggingface import HFLM

    console = sys.stderr

    class Scorer(HFLM):  # type: ignore[misc]
        def _loglikelihood_tokens(self, *args: Any, **kwargs: Any) -> Any:
            with redirect_stderr(console):
                return super()._loglikelihood_tokens(*args, **kwargs)

        def generate_until(self, *args: Any, **kwargs: Any) -> Any:
            with redirect_stderr(console):
                return super().generate_until(*args, **kwargs)

    return Scorer(
        pretrained=callable_of(model),
        backend="causal",
        tokenizer=copy.deepcopy(tokenizer),
        batch_size=batch_size,
        softmax_dtype=torch.promote_types(model.dtype, torch.float32),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors from lm-eval's loggers; as before afterwards."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
