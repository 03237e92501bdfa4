"""The conditions of records in words, for captions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from larosa.records import quantization_label
from larosa_analysis.records.entry import Record
from larosa_analysis.records.outcomes import Score
from larosa_analysis.records.run import Run


def described(runs: list[Run], texts: bool = True, tasks: tuple[str, ...] = ()) -> str:
    """One paragraph: model, precision, calibration, texts (if wanted), these tasks, GPU, versions, commits, dates."""
    records = [run.entry.record for run in runs]
    first, made = records[0], [record for run in runs for record in run.records]
    weights = " (weights dequantised from a GGUF file)" if "gguf_sha256" in first["model"] else ""
    parts = [
        f"{first['model']['name']}, {first['model']['dtype']}{weights}",
        *filter(None, [quantization_label.caption(made)]),
        *_calibrated([run for run in runs if run.entry.family != "dense"]),
        *(_texts(records) if texts else ()),
        *_tasks(runs, tasks),
        f"seed {every(r['config']['seed'] for r in records)}",
        f"measured on {every(device(r) for r in made)}, {_days(made)}",
        ", ".join(f"{name} {every(r['versions'].get(name, '-') for r in made)}" for name in ("torch", "transformers")),
        f"commit {every(commit(r) for r in made)}",
    ]
    return "; ".join(parts) + "."


def _calibrated(sparse: list[Run]) -> Iterable[str]:
    if not sparse:
        return
    records = [run.entry.record for run in sparse]
    calibrations = [r["data"].get("calibration") or {} for r in records]
    if known := every(f"{c['tokens']} tokens of {c['text']}" for c in calibrations if c):
        yield f"calibrated on {known}"
    yield f"token policy: {every(policy(r['config']['token_policy']) for r in records)}"


def _texts(records: list[Record]) -> Iterable[str]:
    texts = {name: r["data"]["texts"][name]["tokens"] for r in records for name in r["metrics"]["perplexity"]}
    lengths = [score["block_length"] for r in records for score in r["metrics"]["perplexity"].values()]
    if texts:
        shown = ", ".join(f"{name} ({tokens} tokens)" for name, tokens in sorted(texts.items()))
        yield f"perplexity on {shown} in blocks of {every(lengths)}"


def _tasks(runs: list[Run], tasks: tuple[str, ...]) -> Iterable[str]:
    scores = [run.scores[task] for run in runs for task in tasks if task in run.scores]
    shown = []
    for task in sorted({score.task for score in scores}):
        of_task = [score for score in scores if score.task == task]
        excluded = every(score.excluded for score in of_task if score.excluded)
        examples = f"{every(s.examples for s in of_task)} of {every(s.source[2] for s in of_task)}"
        held = f"{every(s.metric for s in of_task)}, {examples}"
        shown.append(f"{task} ({held}{f', excluded {excluded}' if excluded else ''}{_prompted(of_task)})")
    if shown:
        yield f"tasks (metric, examples): {', '.join(shown)}"


def _prompted(scores: list[Score]) -> str:
    """What a run may set of prompts and answers, where it was set."""
    template = ", in the chat template" if any(score.prompted[0] for score in scores) else ""
    new_tokens = every(score.prompted[1] for score in scores if score.prompted[1])
    return template + (f", at most {new_tokens} new tokens" if new_tokens else "")


def every(values: Iterable[Any]) -> str:
    """The distinct values, sorted as text."""
    return ", ".join(sorted({str(value) for value in values}))


def _days(records: list[Record]) -> str:
    days = sorted(record["created"][:10] for record in records)
    return " to ".join(dict.fromkeys((days[0], days[-1])))


def policy(tokens: dict[str, Any]) -> str:
    """Which tokens are sparsified."""
    detail = {"skip_first_n": f" (n = {tokens['n']})", "last_fraction": f" ({tokens['fraction']})"}
    return str(tokens["kind"]) + detail.get(tokens["kind"], "")


def device(record: Record) -> str:
    """The GPU, or the processor of a run without one."""
    gpus = record["hardware"]["gpus"]
    if not record["device"].startswith("cuda") or not gpus:
        return str(record["hardware"]["processor"])
    return str(gpus[0]["name"] if isinstance(gpus[0], dict) else gpus[0])  # older records hold the names alone


def commit(record: Record) -> str:
    """Twelve digits, and whether files had changed."""
    git = record["git"]
    return (git["commit"] or "not recorded")[:12] + (" (changed)" if git["dirty"] else "")
