"""Which records may stand in one table: those of one condition. The rest is named, never mixed in.

Fixed for all: model weights, dtype, what is quantised, semantics version of the records; of all but the dense model
calibration tokens, token policy, seed, and of each label the method's settings. Every text and task must be the same
tokens and examples, asked in the same way, wherever it was measured; only BoolQ, which excludes the passages of a
calibration, is scored on the examples that all runs share where the calibration varies. Of several conditions the one
with most methods and targets is shown.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from larosa.records.quantization_label import calibrated, settings
from larosa_analysis.records.run import Run
from larosa_analysis.tables.merge import merged

Facets = dict[str, Any]
RowOf = Callable[[Run], Hashable]
"""What row of a table a run stands in, its target included."""
CALIBRATION = "calibration tokens"
QUANTIZATION = "what is quantised"
_AVOIDING = "boolq"
"""The task whose examples depend on the calibration."""


@dataclass(frozen=True)
class Group:
    """Records that compare, those of one setting as one run, and how many were excluded for what."""

    runs: list[Run]
    excluded: list[str]
    agreeing: frozenset[str]
    """Identities of all records of the group, also of those that newer ones stand for."""


def _row(run: Run) -> Hashable:
    """Method and target in steps of 5 %, whatever the schedule."""
    return run.entry.label, round(20 * run.entry.target)


def choose(
    runs: list[Run], texts: bool, tasks: tuple[str, ...], free: tuple[str, ...] = (), row: RowOf = _row
) -> Group:
    """The largest group of one model's runs that were measured on a text (if `texts`) or on one of `tasks`.

    `free` names conditions that the table varies. The largest is that of most different rows.
    """
    useful = [run for run in runs if (texts and run.entry.nll) or set(tasks) & set(run.scores)]
    useful.sort(key=lambda run: (run.entry.record["created"], run.entry.identity), reverse=True)
    sparse = [run for run in useful if run.entry.family != "dense"]
    facets = {run.entry.identity: _facets(run, texts, tasks, free) for run in useful}
    anchors = list({repr(sorted(facets[run.entry.identity].items())): run for run in sparse or useful}.values())
    groups = [_grown(anchor, sparse, facets) for anchor in anchors]
    members, held = max(groups, key=lambda grown: (len(set(map(row, grown[0]))), len(grown[1])), default=([], {}))
    merged_sparse = merged([run for run in sparse if run in members])  # newest first: an anchor need not be
    varied = (_AVOIDING,) if CALIBRATION in free else ()
    dense = [run for run in useful if run not in sparse]
    shown = merged(_fitted(dense, merged_sparse, facets, held, varied)) + merged_sparse
    kept = {record["identity"] for run in shown for record in run.records}
    excluded = _excluded([run for run in useful if run.entry.identity not in kept], held, facets)
    for task in varied:
        shown, apart = _shared(shown, task)
        excluded += [f"{task}: its runs have no example in common"] * apart
    return Group(shown, excluded, frozenset(run.entry.identity for run in members))


def every(runs: list[Run], texts: bool, tasks: tuple[str, ...]) -> Iterator[Group]:
    """The largest group, then the largest of the rest, and so on; a dense run may stand in several."""
    left = runs
    while True:
        group = choose(left, texts, tasks)
        if not any(run.entry.family != "dense" for run in group.runs):
            return
        yield group
        left = [run for run in left if run.entry.family == "dense" or run.entry.identity not in group.agreeing]


def _facets(run: Run, texts: bool, tasks: tuple[str, ...], free: tuple[str, ...]) -> Facets:
    """Condition -> value."""
    record, config = run.entry.record, run.config
    weights = {key: value for key, value in record["model"].items() if key not in ("device", "name")}
    facets: Facets = {
        "semantics_version": record["semantics_version"],
        "weights or dtype": str(sorted(map(str, weights.items()))),
    }
    facets[QUANTIZATION] = run.entry.quantization
    facets[f"settings of {run.entry.quantization}"] = settings(config)
    if record["model"]["source"] == "random":
        facets["seed of the weights"] = config["seed"]
    for text in run.entry.nll if texts else ():
        block = record["metrics"]["perplexity"][text]["block_length"]
        facets[f"tokens of {text}"] = (record["data"]["texts"][text]["sha256"], block)
    for task in sorted(set(tasks) & set(run.scores)):
        score = run.scores[task]
        examples = hashlib.sha256(score.ids.tobytes()).hexdigest() if len(score.ids) else str(score.examples)
        if CALIBRATION in free and task == _AVOIDING:
            examples = ""
        facets[f"examples of {task}"] = (score.metric, score.source, examples)
        facets[f"chat template or new tokens of {task}"] = score.prompted
    if run.entry.family != "dense":
        facets["seed"] = config["seed"]
        facets[f"settings of {run.entry.label}"] = run.settings
        facets["token policy"] = str(config["token_policy"])
    if run.entry.family != "dense" or calibrated(config):
        facets[CALIBRATION] = record["data"].get("calibration", {}).get("sha256")
    return {condition: value for condition, value in facets.items() if condition not in free}


def _grown(anchor: Run, runs: list[Run], facets: dict[str, Facets]) -> tuple[list[Run], Facets]:
    """The runs that contradict neither the anchor nor each other, newest first, and all their conditions."""
    held, members = dict(facets[anchor.entry.identity]), []
    for run in [anchor, *(run for run in runs if run is not anchor)]:
        conditions = facets[run.entry.identity]
        if _differing(conditions, held) is None:
            held |= conditions
            members.append(run)
    return members, held


def _differing(conditions: Facets, held: Facets) -> str | None:
    return next((name for name, value in conditions.items() if held.get(name, value) != value), None)


def _fitted(
    dense: list[Run], members: list[Run], facets: dict[str, Facets], held: Facets, varied: tuple[str, ...]
) -> list[Run]:
    """The dense runs that contradict neither the group nor each other, those that cover most of it first, each with
    its scores on the group's examples; of tasks whose examples are `varied`, on its own."""
    bound, fitting = _loose(held), []
    for run in sorted(dense, key=lambda run: -len(facets[run.entry.identity].items() & held.items())):
        conditions = _loose(facets[run.entry.identity])
        if _differing(conditions, bound) is None:
            bound |= conditions
            fitting.append(_on_examples_of(members, run, varied))
    return fitting


def _on_examples_of(members: list[Run], dense: Run, varied: tuple[str, ...]) -> Run:
    scores = {}
    for task, score in dense.scores.items():
        like = next((run.scores[task] for run in members if task in run.scores and task not in varied), score)
        if set(like.ids) <= set(score.ids):
            scores[task] = score.on(like.ids)
    return replace(dense, scores=scores)


def _shared(runs: list[Run], task: str) -> tuple[list[Run], bool]:
    """The runs with a task scored on the examples that all of them share; without it, and True, if there are none."""
    holding = [run.scores[task].ids for run in runs if task in run.scores]
    common = reduce(np.intersect1d, holding) if holding else np.array([], dtype=np.int64)
    on_common = []
    for run in runs:
        scores = {name: score for name, score in run.scores.items() if name != task}
        if task in run.scores and len(common):
            scores[task] = run.scores[task].on(common)
        on_common.append(replace(run, scores=scores))
    return on_common, bool(holding) and not len(common)


def _loose(facets: Facets) -> Facets:
    """Examples without their numbers: a method calibrated on BoolQ's passages is scored on fewer than the dense."""
    return {name: value[:2] if name.startswith("examples of ") else value for name, value in facets.items()}


def _excluded(runs: list[Run], held: Facets, facets: dict[str, Facets]) -> list[str]:
    why = Counter(_differing(facets[run.entry.identity], held) or "an older measurement" for run in runs)
    return [f"{count} record{'s' * (count > 1)}: {reason}" for reason, count in sorted(why.items())]
