"""lm-eval's wrapper around a model that is already in memory.

Log-probabilities are taken in float32 also for a bf16 or fp16 model, whose own softmax makes ties.
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
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def callable_of(model: PreTrainedModel) -> Any:
    """`model` for lm-eval, but no Module: it would tie a Module's weights, undoing a head rotated by itself."""
    as_is: Any = functools.partial(model)
    as_is.device, as_is.config, as_is.generate = model.device, model.config, model.generate
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
