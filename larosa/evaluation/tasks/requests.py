"""lm-eval's requests of some tasks as token ids in one file, so that they can be scored where lm-eval is not installed.

`larosa requests` writes the file on a machine with lm-eval; `evaluation.zero_shot.requests=FILE` scores
it with torch alone (:mod:`larosa.evaluation.tasks.likelihood`) and gives the scores of lm-eval. It holds the text of
the tasks' data sets: keep it with the data, not in a repository.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from larosa.commands import typed
from larosa.config.base import Strict, readable
from larosa.config.run import ZeroShotConfig
from larosa.data.contents import content_hash
from larosa.data.tensor_store import write_atomically
from larosa.evaluation.tasks.likelihood import Tokens, likelihoods
from larosa.evaluation.tasks.scores import TaskScore, ZeroShotError, standard_error

PROBE = "The 3 cats' naïve père\tsaid: “12 + 345.6 = x²” \n\n  日本語 \U0001f600 if (a != b) {return}"
"""A tokenizer is told by its vocabulary and by how it cuts this text."""


class RecordedTask(Strict):
    """The requests of one task, or of one group whose tasks are scored together."""

    kind: Literal["multiple_choice", "loglikelihood"]
    """`loglikelihood`: one continuation, right if it is what greedy decoding gives."""
    metric: Literal["acc", "acc_norm"]
    split: str
    source: str
    num_available: int
    shots: int
    excluded: int
    document_ids: tuple[int, ...]
    contexts: tuple[Tokens, ...]
    """Each once, however many requests begin with it."""
    requests: tuple[tuple[tuple[int, Tokens], ...], ...]
    """For each document, its choices: the context's index, the continuation."""
    lengths: tuple[tuple[int, ...], ...]
    """For each document, its choices' lengths in characters, by which acc_norm divides."""
    gold: tuple[tuple[int, ...], ...]
    """For each document, the choices that are right."""


class Requests(Strict):
    """What a file of requests holds, and what it was recorded for."""

    version: Literal[1]
    lm_eval: str
    """lm-eval's version."""
    tokenizer: str
    """:func:`tokenizer_fingerprint`."""
    max_length: int
    """Tokens that the model reads; longer contexts lost their beginning, as in lm-eval."""
    source: str
    examples: int | None
    seed: int
    excluded_by: str | None
    """Identity of the calibration text whose passages BoolQ may not ask about; None where there is none."""
    chat_template: bool
    tasks: dict[str, RecordedTask]

    def write(self, path: Path) -> None:
        """Write the file, gzipped JSON; equal requests give equal bytes."""
        write_atomically(path, gzip.compress(self.model_dump_json().encode(), mtime=0))


@functools.lru_cache(maxsize=1)
def _read(path: str, _content: str) -> Requests:
    try:
        return Requests.model_validate_json(gzip.decompress(Path(path).read_bytes()))
    except ValidationError as error:
        raise ZeroShotError(f"{path} holds no requests of this version: {readable(error)[:400]}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ZeroShotError(f"{path} cannot be read as gzipped requests: {error}") from error


def read_requests(config: ZeroShotConfig, seed: int, excluded_by: str | None) -> Requests:
    """The file of `config.requests`. Raises ZeroShotError if it was not recorded for these settings."""
    path = Path(str(config.requests)).expanduser()
    try:
        recorded = _read(str(path), content_hash(path))
    except FileNotFoundError:
        raise ZeroShotError(
            f"evaluation.zero_shot.requests={path} is not there: write it with `{typed('requests')} {path}` and "
            "this run's settings on a machine with lm-eval"
        ) from None
    except OSError as error:
        raise ZeroShotError(f"{path} cannot be read as gzipped requests: {error}") from error
    missing = [task for task in config.tasks if task not in recorded.tasks]
    pairs: dict[str, tuple[object, object]] = {
        "evaluation.zero_shot.source": (recorded.source, config.source),
        "evaluation.zero_shot.examples": (recorded.examples, config.examples),
        "evaluation.zero_shot.chat_template": (recorded.chat_template, config.chat_template),
        "seed": (recorded.seed, seed),
    }
    if "boolq" in config.tasks:
        pairs["the calibration text whose passages boolq leaves out"] = (recorded.excluded_by, excluded_by)
    wrong = [f"{name} is {had}, the run's {asked}" for name, (had, asked) in pairs.items() if had != asked]
    if missing:
        wrong.append(f"it lacks {', '.join(missing)}")
    if wrong:
        raise ZeroShotError(
            f"{path} was recorded for other settings: {'; '.join(wrong)}. Record it again with this run's settings, or "
            "set evaluation.zero_shot.requests=null"
        )
    return recorded


def check_reader(recorded: Requests, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raise ZeroShotError if the requests were cut into tokens by another tokenizer or for another length."""
    if recorded.tokenizer != tokenizer_fingerprint(tokenizer, recorded.chat_template):
        raise ZeroShotError(
            "the requests were recorded with another tokenizer or chat template than this model's: record them again"
        )
    if recorded.max_length != max_length:
        raise ZeroShotError(
            f"the requests were recorded for a model that reads {recorded.max_length} tokens, this one reads "
            f"{max_length}: record them again"
        )


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase, chat_template: bool = False) -> str:
    """A hash of the vocabulary and of the probe's tokens, and of the chat template where prompts use it."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    told: list[object] = [vocabulary, tokenizer.encode(PROBE)]
    told += [tokenizer.chat_template] if chat_template else []
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def score(model: PreTrainedModel, name: str, task: RecordedTask, batch_size: int) -> TaskScore:
    """The score of one recorded task, equal to lm-eval's."""
    flat = [(task.contexts[index], continuation) for choices in task.requests for index, continuation in choices]
    answers = iter(likelihoods(model, flat, batch_size))
    correct = []
    for position, choices in enumerate(task.requests):
        correct.append(_right(task, position, [next(answers) for _ in choices]))
    return TaskScore(
        task=name,
        metric=task.metric,
        value=sum(correct) / len(correct),
        standard_error=standard_error(correct),
        examples=len(correct),
        num_available=task.num_available,
        split=task.split,
        source=task.source,
        document_ids=list(task.document_ids),
        correct=correct,
        shots=task.shots,
        excluded=task.excluded,
    )


def _right(task: RecordedTask, position: int, answers: Sequence[tuple[float, bool]]) -> float:
    if task.kind == "loglikelihood":
        return float(answers[0][1])
    nats = np.array([likelihood for likelihood, _ in answers])
    if task.metric == "acc_norm":
        nats = nats / np.array(task.lengths[position], dtype=np.float64)
    return float(int(nats.argmax()) in task.gold[position])
