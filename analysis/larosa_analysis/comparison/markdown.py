"""The method table as Markdown: both metrics of a method one below the other, then what follows from them."""

from __future__ import annotations

import numpy as np

from larosa_analysis.comparison.criteria import RATIO_A, Gain, Verdict, gains, verdicts
from larosa_analysis.comparison.overhead import adapter_fraction, overhead_at_llama2_7b
from larosa_analysis.comparison.rows import Metric, Row, Rows
from larosa_analysis.records.conditions import commit, device, every, policy
from larosa_analysis.records.entry import Entry
from larosa_analysis.stats.bootstrap import Estimate

_CRITERIA = {
    "a": f"Criterion (a), at equal weight sparsity at most {RATIO_A:.2f} of magnitude's increase with an overhead of "
    "at most one bf16 D x D per layer ({:.2f} %)",
    "b": "Criterion (b), at equal bytes read less than magnitude's increase",
}
_READING = (
    "Increase in perplexity over dense, in brackets divided by magnitude Top-K's at the target; each method at its "
    "best schedule. *Weight sparsity*: the achieved weight sparsity equals the target. *Bytes read*: it equals the "
    "target after overhead is subtracted, against magnitude at the target; without overhead both are one. Achieved: "
    "mean over texts, ± over tokens, range over texts; a run off the target by more than {} points does not count. "
    "Intervals: 95 %, paired block bootstrap over evaluation blocks; another seed, calibration or "
    "choice of schedule is not in them."
)


def markdown(rows: Rows) -> str:
    """The whole section, without a newline at its end."""
    parts = [caption(rows)]
    for target in rows.targets:
        parts += [f"**{percent(target, 0)} %**", _table(rows, target)]
    parts += _missed(rows)
    if rows.unplaced:
        parts.append("Meant for no target of this table: " + "; ".join(entry.name for entry in rows.unplaced) + ".")
    parts += [criterion([v for v in verdicts(rows) if v.criterion == name], rows) for name in ("a", "b")]
    all_gains = gains(rows)
    if all_gains:
        parts.append(_gains(all_gains))
    return "\n\n".join(parts)


def caption(rows: Rows) -> str:
    """The conditions under which all rows were measured, and how to read them."""
    records, dense = [entry.record for entry in rows.entries], rows.dense.record
    config = dense["config"]
    sparse = next((entry.record for entry in rows.entries if entry is not rows.dense), dense)
    calibration, size = sparse["data"].get("calibration", {}), config["evaluation"]["perplexity"]
    texts = ", ".join(f"{name} ({dense['data']['texts'][name]['tokens']})" for name in rows.texts)
    perplexity = ", ".join(f"{name} {dense['metrics']['perplexity'][name]['perplexity']:.2f}" for name in rows.texts)
    days = sorted({record["created"][:10] for record in records})
    versions = [f"{name} {every(r['versions'].get(name, '-') for r in records)}" for name in ("torch", "transformers")]
    return (
        f"{config['model']['name']}, {config['model']['dtype']}. Calibrated on {calibration.get('tokens')} tokens of "
        f"{calibration.get('text')}; perplexity on texts (tokens) {texts}, blocks of {size['length']}; token "
        f"policy: {policy(sparse['config']['token_policy'])}; seed {every(r['config']['seed'] for r in records)}. "
        f"Measured on {every(device(r) for r in records)}, {' to '.join(dict.fromkeys((days[0], days[-1])))}, "
        f"{', '.join(versions)}, commit {every(commit(r) for r in records)}. Dense perplexity: {perplexity}.\n\n"
        + _READING.format(percent(rows.tolerance, 2))
    )


def _table(rows: Rows, target: float) -> str:
    head = ["method", "overhead, % (at LLaMA2-7B)", "equal", "schedule", "target, %", "achieved, %", "less overhead, %"]
    head += [*(f"{text}: increase (ratio)" for text in rows.texts), "mean ratio [95 %]"]
    lines = [head, ["---"] * len(head)]
    at_level = {row.entry.label: row for row in rows.standing(target, "weight sparsity")}
    at_net = {row.entry.label: row for row in rows.standing(target, "bytes read")}
    for label in dict.fromkeys([*at_level, *at_net]):
        level, net = at_level.get(label), at_net.get(label)
        free = level is not None and not level.entry.overhead
        lines.append(_line(rows, label, level, net, "both" if free else "weight sparsity"))
        if not free:
            lines.append(["", "", *_line(rows, label, net, level, "bytes read")[2:]])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _line(rows: Rows, label: str, row: Row | None, other: Row | None, metric: Metric | str) -> list[str]:
    known = row or other
    assert known is not None  # a label comes from a row
    seven_b = overhead_at_llama2_7b(known.entry.record)
    start = [label, f"{percent(known.entry.overhead)} ({'-' if seven_b is None else percent(seven_b)})", metric]
    if row is None:
        return [*start, "no record", *["-"] * (4 + len(rows.texts))]
    entry, increase = row.entry, rows.increases.observed(row.entry)
    of = f" (of {row.schedules})" if row.schedules > 1 else ""
    cells = [f"{_number(increase[t])} ({_number(row.compared.by_text[t].value)})" for t in rows.texts]
    saved = percent(entry.weight_sparsity - entry.overhead)
    shown = [entry.schedule + of, percent(entry.target), achieved(entry), saved, *cells]
    return [*start, *shown, interval(row.compared.mean)]


def achieved(entry: Entry) -> str:
    """Mean over texts ± root mean square of the spread over tokens (least to most over texts), in percent."""
    levels, spread = list(entry.achieved.values()), np.sqrt(np.mean(np.square(list(entry.spread.values()))))
    return f"{percent(entry.weight_sparsity)} ± {percent(spread)} ({percent(min(levels))} to {percent(max(levels))})"


def interval(estimate: Estimate, scale: float = 1.0, digits: int = 2) -> str:
    """`value [low, high]`."""
    value, low, high = (
        "" if number is None else _number(scale * number, digits)
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]" if low else f"{value} [-]"


def _number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.3g}"


def percent(value: float, digits: int = 1) -> str:
    """A fraction as a number of percents."""
    return f"{100 * value:.{digits}f}"


def _missed(rows: Rows) -> list[str]:
    """What missed its target: methods without a row in full, what was measured again at a corrected target in short."""
    standing = {(row.target, row.metric, row.entry.label) for row in rows.rows if row.status == "counts"}
    missed = [row for row in rows.rows if row.status == "off target"]
    lost = [row for row in missed if (row.target, row.metric, row.entry.label) not in standing]
    again = [row for row in missed if row not in lost]
    parts = []
    if lost:
        parts.append("Off target, and not counted:\n\n" + "\n".join(f"* {_miss(row)}" for row in lost))
    if again:
        text = "Off target, and not counted, of methods with another record that counts: "
        parts.append(text + "; ".join(_miss(row) for row in again) + ".")
    return parts


def _miss(row: Row) -> str:
    entry = row.entry
    saved = "" if row.metric == "weight sparsity" else f", saves {percent(row.saved)} % after overhead"
    return (
        f"{percent(row.target, 0)} %, {row.metric}: {entry.label}, {entry.schedule} ({entry.identity}): target "
        f"{percent(entry.target)} %, achieved {achieved(entry)} %{saved}"
    )


def criterion(of_criterion: list[Verdict], rows: Rows) -> str:
    """What a criterion demands, and whether it is met at each target."""
    text = _CRITERIA[of_criterion[0].criterion].format(100 * adapter_fraction(rows.dense.record))
    lines = [f"{text}: **{_met(all(verdict.met for verdict in of_criterion))}**.\n"]
    for verdict in of_criterion:
        line = f"* {percent(verdict.target, 0)} % {_met(verdict.met)}: "
        if verdict.best is None:
            line += "no such larosa record"
        else:
            line += f"{_named(verdict.best)}, {verdict.texts_passed} of {len(rows.texts)} texts"
        if verdict.over_budget is not None:
            line += f". With larger overhead: {_named(verdict.over_budget)}"
        lines.append(line)
    return "\n".join(lines)


def _named(row: Row) -> str:
    return f"{row.entry.label} (overhead {percent(row.entry.overhead, 2)} %), {interval(row.compared.mean)}"


def _met(met: bool) -> str:
    return "met" if met else "not met"


def _gains(all_gains: list[Gain]) -> str:
    lines = [
        "| method | target, % | searched schedule | against | increase lower by, % [95 %] |",
        "|---|---|---|---|---|",
    ]
    for gain in all_gains:
        cells = [gain.label, percent(gain.target, 0), gain.searched.schedule, gain.given.schedule]
        lines.append("| " + " | ".join([*cells, interval(gain.gain, 100, 1)]) + " |")
    return (
        "By how much the best searched schedule lowers the increase, against the better of uniform and official:\n\n"
        + "\n".join(lines)
    )
