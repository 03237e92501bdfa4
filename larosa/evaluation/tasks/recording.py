"""Record lm-eval's requests of a run's tasks: the requests of its wrapper to the model, in tokens.

No model is needed, only its tokenizer and configuration. Which choices are right comes from lm-eval itself, with
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

from larosa.config.run import ZeroShotConfig
from larosa.evaluation.tasks.harness import Drawn, prepare
from larosa.evaluation.tasks.likelihood import Tokens
from larosa.evaluation.tasks.requests import RecordedTask, Requests, tokenizer_fingerprint
from larosa.evaluation.tasks.scores import ZeroShotError
from larosa.evaluation.tasks.wrapper import quiet


def record(
    config: ZeroShotConfig,
    tokenizer: PreTrainedTokenizerBase,
    shape: PretrainedConfig,
    seed: int,
    excluded_by: str | None,
    passages: Sequence[str],
) -> Requests:
    """The requests of `config.tasks` for a model of this tokenizer and configuration.

    Raises ZeroShotError for a task that likelihoods alone do not decide.
    """
    with quiet():
        recorder = _recorder(tokenizer, shape)
        drawn = prepare(config, seed, passages)
        tasks = {name: _record_task(recorder, draw, config.chat_template) for name, draw in drawn.items()}
    return Requests(
        version=1,
        lm_eval=metadata.version("lm-eval"),
        tokenizer=tokenizer_fingerprint(tokenizer, config.chat_template),
        max_length=recorder.max_length,
        source=config.source,
        examples=config.examples,
        seed=seed,
        excluded_by=excluded_by,
        chat_template=config.chat_template,
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


def _record_task(recorder: Any, drawn: Drawn, chat_template: bool) -> RecordedTask:
    fields: dict[str, Any] = {"requests": [], "lengths": [], "gold": []}
    contexts: dict[Tokens, int] = {}
    for name, task, rows in drawn.each():
        fields["kind"] = _kind(name, task)
        documents = [task.eval_docs[row] for row in rows]
        choices = [task.doc_to_choice(one) if fields["kind"] == "multiple_choice" else [] for one in documents]
        asked = _ask(recorder, task, rows, contexts, chat_template)
        if fields["kind"] == "multiple_choice" and list(map(len, choices)) != list(map(len, asked)):
            raise ZeroShotError(f"{name} cannot be recorded: it asks for more than its choices. Score it with lm-eval")
        fields["requests"] += asked
        fields["lengths"] += [[len(choice) for choice in texts] for texts in choices]
        fields["gold"] += [_gold(task, *pair, drawn.metric) for pair in zip(documents, map(len, choices), strict=True)]
    fields |= {"metric": drawn.metric, "document_ids": drawn.rows, "contexts": list(contexts)}
    return RecordedTask.model_validate(fields | drawn.facts())


def _kind(name: str, task: Any) -> str:
    kind = str(task.config.output_type)
    if kind not in ("multiple_choice", "loglikelihood") or callable(task.config.process_results):
        raise ZeroShotError(f"{name} cannot be recorded: more than likelihoods decides it. Score it with lm-eval")
    return kind


def _ask(
    recorder: Any, task: Any, rows: list[int], contexts: dict[Tokens, int], chat_template: bool
) -> list[list[tuple[int, Tokens]]]:
    """For each row, its requests: the context's place in `contexts`, which new ones join, and the continuation."""
    with redirect_stderr(io.StringIO()):  # bars
        task.build_all_requests(
            samples=None if len(rows) == len(task.eval_docs) else rows,
            apply_chat_template=chat_template,
            chat_template=recorder.apply_chat_template if chat_template else None,
        )
        answers = recorder.loglikelihood(task.instances, disable_tqdm=True)
    asked: list[list[tuple[int, Tokens]]] = [[] for _ in rows]
    for instance, (context, continuation) in zip(task.instances, answers, strict=True):
        asked[instance.doc_id].append((contexts.setdefault(context, len(contexts)), continuation))
    return asked


def _gold(task: Any, document: Any, choices: int, metric: str) -> list[int]:
    """The choices for which lm-eval gives a point."""
    answers = [[(0.0 if i == chosen else -1.0, False) for i in range(choices)] for chosen in range(choices)]
    return [i for i, answer in enumerate(answers) if task.process_results(document, answer)[metric] == 1.0]
