"""Record lm-eval's requests of a run's tasks: what its wrapper would have asked the model, in tokens.

No model is needed, only its tokenizer and configuration. Which choices are right is asked of lm-eval itself, with
likelihoods that prefer one choice after the other.
"""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Sequence
from contextlib import redirect_stderr
from importlib import metadata
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from larosa.config import ZeroShotConfig
from larosa.evaluation.harness import Drawn, prepare, quiet
from larosa.evaluation.likelihood import Tokens
from larosa.evaluation.requests import RecordedTask, Requests, tokenizer_fingerprint
from larosa.evaluation.scores import ZeroShotError


def record(
    config: ZeroShotConfig,
    tokenizer: PreTrainedTokenizerBase,
    shape: PretrainedConfig,
    seed: int,
    left_out_by: str | None,
    passages: Sequence[str],
) -> Requests:
    """The requests of `config.tasks` for a model of this tokenizer and configuration.

    Raises ZeroShotError for a task that likelihoods alone do not decide.
    """
    with quiet():
        recorder = _recorder(tokenizer, shape)
        tasks = {name: _record_task(recorder, name, own) for name, own in prepare(config, seed, passages).items()}
    return Requests(
        version=1,
        lm_eval=metadata.version("lm-eval"),
        tokenizer=tokenizer_fingerprint(tokenizer),
        max_length=recorder.max_length,
        source=config.source,
        examples=config.examples,
        seed=seed,
        left_out_by=left_out_by,
        tasks=tasks,
    )


def _recorder(tokenizer: PreTrainedTokenizerBase, shape: PretrainedConfig) -> Any:
    """lm-eval's wrapper, which keeps what it would run."""
    from lm_eval.models.huggingface import HFLM

    class Recorder(HFLM):  # type: ignore[misc]
        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[Tokens, Tokens]]:
            return [(self._cut(context, asked), tuple(asked)) for _, context, asked in requests]

        def _cut(self, context: list[int], asked: list[int]) -> Tokens:
            if len(asked) > self.max_length:
                raise ZeroShotError(f"a continuation has {len(asked)} tokens, the model reads {self.max_length}")
            return tuple((context + asked)[-(self.max_length + 1) :][: -len(asked)])

    stand_in: Any = functools.partial(_no_model)
    stand_in.device, stand_in.config = torch.device("cpu"), shape
    return Recorder(pretrained=stand_in, backend="causal", tokenizer=copy.deepcopy(tokenizer), batch_size=1)


def _no_model(*_: Any, **__: Any) -> None:
    raise ZeroShotError("recording requests runs no model")


def _record_task(recorder: Any, name: str, drawn: Drawn) -> RecordedTask:
    task = drawn.task
    kind = task.config.output_type
    if kind not in ("multiple_choice", "loglikelihood") or callable(task.config.process_results):
        raise ZeroShotError(f"{name} cannot be recorded: more than likelihoods decides it. Score it with lm-eval")
    everything = len(drawn.rows) == len(task.eval_docs)
    with redirect_stderr(io.StringIO()):  # bars
        task.build_all_requests(samples=None if everything else drawn.rows)
        answers = recorder.loglikelihood(task.instances, disable_tqdm=True)
    contexts: dict[Tokens, int] = {}
    asked: list[list[tuple[int, Tokens]]] = [[] for _ in drawn.rows]
    for instance, (context, continuation) in zip(task.instances, answers, strict=True):
        asked[instance.doc_id].append((contexts.setdefault(context, len(contexts)), continuation))
    documents = [task.eval_docs[row] for row in drawn.rows]
    choices = [task.doc_to_choice(one) if kind == "multiple_choice" else [] for one in documents]
    if kind == "multiple_choice" and any(len(own) != len(rows) for own, rows in zip(choices, asked, strict=True)):
        raise ZeroShotError(f"{name} cannot be recorded: it asks for more than its choices. Score it with lm-eval")
    found = {
        "kind": kind,
        "metric": drawn.metric,
        "document_ids": drawn.rows,
        "contexts": list(contexts),
        "requests": asked,
        "lengths": [[len(choice) for choice in own] for own in choices],
        "gold": [_gold(task, one, len(own), drawn.metric) for one, own in zip(documents, choices, strict=True)],
    }
    return RecordedTask.model_validate(found | drawn.facts())


def _gold(task: Any, document: Any, choices: int, metric: str) -> list[int]:
    """The choices for which lm-eval gives a point."""
    answers = [[(0.0 if i == chosen else -1.0, False) for i in range(choices)] for chosen in range(choices)]
    return [chosen for chosen, own in enumerate(answers) if task.process_results(document, own)[metric] == 1.0]
