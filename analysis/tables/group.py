"""Which records may stand in one table: those of one condition. The rest is named, never mixed in.

Fixed for all: model weights, dtype, meaning of the records; of all but the dense model calibration tokens and token
policy. Every text and task must be the same tokens and examples wherever it was measured. Of several conditions the one
with most methods and levels is shown.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from analysis.run import Run

Facets = dict[str, Any]
RowOf = Callable[[Run], Hashable]
"""What row of a table a run stands in, its level included."""
CALIBRATION = "calibration tokens"


@dataclass(frozen=True)
class Group:
    """Records that compare, and how many were left out for what."""

    runs: list[Run]
    left_out: list[str]


def _row(run: Run) -> Hashable:
    """Method and level in steps of 5 %, whatever the schedule."""
    return run.entry.label, round(20 * run.entry.asked)


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
    found = [_grown(anchor, sparse, facets) for anchor in anchors]
    members, held = max(found, key=lambda grown: (len(set(map(row, grown[0]))), len(grown[1])), default=([], {}))
    dense = _fitted([run for run in useful if run not in sparse], members, facets, held)
    members = _newest([*([dense] if dense else []), *members])
    kept = {run.entry.identity for run in members}
    return Group(members, _left_out([run for run in useful if run.entry.identity not in kept], held, facets))


def every(runs: list[Run], texts: bool, tasks: tuple[str, ...]) -> Iterator[Group]:
    """The largest group, then the largest of the rest, and so on; a dense run may stand in several."""
    left = runs
    while any(run.entry.family != "dense" for run in left):
        group = choose(left, texts, tasks)
        if not group.runs:
            return
        yield group
        taken = {run.entry.identity for run in group.runs if run.entry.family != "dense"}
        left = [run for run in left if run.entry.identity not in taken]


def _facets(run: Run, texts: bool, tasks: tuple[str, ...], free: tuple[str, ...]) -> Facets:
    """Condition -> value."""
    record, config = run.entry.record, run.config
    weights = {key: value for key, value in record["model"].items() if key not in ("device", "name")}
    found: Facets = {"meaning": record["meaning"], "weights or dtype": str(sorted(map(str, weights.items())))}
    if record["model"]["source"] == "random":
        found["seed of the weights"] = config["seed"]
    for text in run.entry.nll if texts else ():
        block = record["metrics"]["perplexity"][text]["block_length"]
        found[f"tokens of {text}"] = (record["data"]["texts"][text]["sha256"], block)
    for task in sorted(set(tasks) & set(run.scores)):
        score = run.scores[task]
        examples = hashlib.sha256(score.ids.tobytes()).hexdigest() if len(score.ids) else str(score.examples)
        if CALIBRATION in free:  # BoolQ leaves out what was calibrated on
            examples = ""
        found[f"examples of {task}"] = (score.metric, score.asked, examples)
    if run.entry.family != "dense":
        found["token policy"] = str(config["tokens"])
        found[CALIBRATION] = record["data"].get("calibration", {}).get("sha256")
    return {condition: value for condition, value in found.items() if condition not in free}


def _grown(anchor: Run, runs: list[Run], facets: dict[str, Facets]) -> tuple[list[Run], Facets]:
    """The runs that contradict neither the anchor nor each other, newest first, and all their conditions."""
    held, members = dict(facets[anchor.entry.identity]), []
    for run in [anchor, *(run for run in runs if run is not anchor)]:
        own = facets[run.entry.identity]
        if _differing(own, held) is None:
            held |= own
            members.append(run)
    return members, held


def _differing(own: Facets, held: Facets) -> str | None:
    return next((name for name, value in own.items() if held.get(name, value) != value), None)


def _fitted(dense: list[Run], members: list[Run], facets: dict[str, Facets], held: Facets) -> Run | None:
    """The dense run that covers most of the group, its scores on the group's examples; None if none fits."""
    bound = _loose(held)
    fitting = [run for run in dense if _differing(_loose(facets[run.entry.identity]), bound) is None]
    best = max(fitting, key=lambda run: len(facets[run.entry.identity].items() & held.items()), default=None)
    if best is None:
        return None
    scores = {}
    for task, score in best.scores.items():
        like = next((run.scores[task] for run in members if task in run.scores), score)
        if set(like.ids) <= set(score.ids):
            scores[task] = score.on(like.ids)
    return replace(best, scores=scores)


def _loose(facets: Facets) -> Facets:
    """Examples without their numbers: a method calibrated on BoolQ's passages is scored on fewer than the dense."""
    return {name: value[:2] if name.startswith("examples of ") else value for name, value in facets.items()}


def _newest(runs: list[Run]) -> list[Run]:
    """One run a label, schedule, level and calibration; runs come newest first."""
    found: dict[Any, Run] = {}
    for run in runs:
        calibration = run.entry.record["data"].get("calibration", {}).get("sha256")
        own = (run.entry.schedule, run.entry.asked, calibration) if run.entry.family != "dense" else None
        found.setdefault((run.entry.label, own), run)
    return list(found.values())


def _left_out(runs: list[Run], held: Facets, facets: dict[str, Facets]) -> list[str]:
    why = Counter(_differing(facets[run.entry.identity], held) or "an older measurement" for run in runs)
    return [f"{count} record{'s' * (count > 1)}: {reason}" for reason, count in sorted(why.items())]
