"""The rows of one model in a table: the printed ones with the run that fills each, then runs that the paper has not."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from larosa.records.quantization_label import NONE
from larosa_analysis import paper
from larosa_analysis.paper import Printed
from larosa_analysis.records.failures import Failure
from larosa_analysis.records.run import Run
from larosa_analysis.tables import match
from larosa_analysis.tables.flops import mlp_share
from larosa_analysis.tables.spec import Spec

_OTHERS = {"method": "deepseek-r1 report", "quantization": "omniquant"}
"""Key column -> printed rows that are none of ours: measured by others, or with a quantiser that is not here."""


@dataclass(frozen=True)
class Line:
    """One row before its cells are filled."""

    target: float
    """The target sparsity, a fraction."""
    keys: dict[str, str]
    printed: Printed | None
    run: Run | None
    state: str = ""
    """What stands in place of a value where there can be no run; empty if there is one or could be one."""
    why: str = ""
    """A footnote to the state."""


def printed_lines(spec: Spec, rows: list[Printed], runs: list[Run], own_model: bool) -> list[Line]:
    """A line for each printed row; `own_model` takes the settings alone, for a model that the paper has not."""
    lines = []
    for row in rows:
        target = float(row.get("sparsity", 0))
        fitting = [run for run in runs if match.fits(run, row, spec.keys)]
        keys = {key: row[key] for key in spec.keys if key != "sparsity"}
        state = "not ours" if _of_others(row) else ""
        run = None if state else match.at(fitting, target, printed=not own_model)
        if own_model:
            keys = {
                key: match.named(key, value) if run is None else match.KEYS[key](run) for key, value in keys.items()
            }
        lines.append(Line(target, keys, None if own_model else row, run, state))
    return lines


def settings(rows: list[Printed], spec: Spec) -> list[Printed]:
    """The distinct settings of printed rows whatever their model.

    Without coefficients, which are a model's own, and without the paper's calibration sets: any other set will do.
    """
    if any(key.startswith("alpha") for key in spec.keys):
        return []
    if "calibration" in spec.keys:
        rows = [row for row in rows if row["method"] == "dense"]
    distinct = {tuple(row[key] for key in spec.keys): row for row in rows if not _of_others(row)}
    return list(distinct.values())


def _of_others(row: Printed) -> bool:
    return any(row.get(key) == named for key, named in _OTHERS.items())


def own_levels(runs: list[Run]) -> list[float]:
    """The targets of runs in steps of 5 %."""
    asked = {round(run.entry.target, 6) for run in runs if run.entry.family != "dense"}
    return sorted(level for level in asked if abs(20 * level - round(20 * level)) < 1e-4)


def own_lines(spec: Spec, targets: list[float], runs: list[Run], printed: list[Line]) -> list[Line]:
    """Runs whose setting no printed line holds at their target, the best of each setting and target."""
    taken = {(line.target, setting(spec, line.run)) for line in printed if line.run is not None}
    by_setting: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if _is_own(spec, run):
            by_setting.setdefault(setting(spec, run), []).append(run)
    lines = []
    for named, group in sorted(by_setting.items()):
        for target in targets if group[0].entry.family != "dense" else [0.0]:
            best = match.at(group, target)
            if best is not None and (target, named) not in taken:
                keys = {key: match.KEYS[key](best) for key in spec.keys if key != "sparsity"}
                lines.append(Line(target, keys, None, best))
    return lines


def setting(spec: Spec, run: Run) -> tuple[str, ...]:
    """What tells a run's row from others of its target."""
    keys = [match.KEYS[key](run) for key in spec.keys if key not in ("sparsity", "method")]
    return run.entry.label, match.metric(run), *keys


def _is_own(spec: Spec, run: Run) -> bool:
    """Whether a run may have a row that is not printed; of the dense model only a table with several can."""
    if run.entry.family == "dense":
        return spec.quantised
    if spec.presets and run.preset not in spec.presets:
        return False
    if "alpha1" in spec.keys and not match.of_pairs(run, _pairs(spec)):
        return False
    return "rotation" not in spec.keys or bool(match.rotation(run))


def _pairs(spec: Spec) -> list[tuple[float, float]]:
    """The pairs of coefficients, of h1 and h3, that the paper prints: a whole grid is Table 11's."""
    return [(float(row["alpha1"]), float(row["alpha3"])) for row in paper.rows(spec.file)]


def of_one_schedule(runs: list[Run]) -> list[Run]:
    """Of every target the runs of one schedule, that with most settings; the dense ones besides.

    For a table that varies one thing: a schedule that some of its rows lack would vary with it.
    """
    sparse = [run for run in runs if run.entry.family != "dense"]
    kept = [run for run in runs if run.entry.family == "dense"]
    for level in sorted({round(20 * run.entry.target) for run in sparse}):
        here = [run for run in sparse if round(20 * run.entry.target) == level]
        settings = {
            name: {run.entry.label for run in here if run.entry.schedule == name}
            for name in sorted({run.entry.schedule for run in here})
        }
        most = max(settings, key=lambda name: len(settings[name]))
        kept += [run for run in here if run.entry.schedule == most]
    return kept


def useful(spec: Spec, rows: list[Printed], targets: list[float], runs: list[Run]) -> list[Run]:
    """The runs that some row of the table could hold; `targets` empty means any target.

    Of a table that varies the calibration set or what is quantised, only those of methods and schedules that were
    measured so, if any.
    """
    sparse = [run for run in runs if run.entry.family != "dense"]
    for key, usual in (("calibration", 1), ("quantization", 0)):
        varied = defaultdict[tuple[str, str], set[str]](set)
        for run in sparse:
            if (value := match.KEYS[key](run)) != NONE:
                varied[run.method, run.entry.schedule].add(value)
        several = {pair for pair, values in varied.items() if len(values) > usual}
        if key in spec.keys and several:
            runs = [run for run in runs if run not in sparse or (run.method, run.entry.schedule) in several]
    return [
        run
        for run in runs
        if (_is_own(spec, run) or any(match.fits(run, row, spec.keys) for row in rows))
        and (not targets or any(match.stands(run, t) or abs(run.entry.target - t) < 1e-9 for t in targets))
    ]


def unreachable(spec: Spec, targets: list[float], runs: list[Run], lines: list[Line]) -> list[Line]:
    """CATS where the target is more than it can save: it drops rows of up and down, nothing else."""
    if not runs or not any(line.keys.get("method") == "cats" for line in lines):
        return []
    most = mlp_share(runs[0].config["model"]["shape"])
    there = {line.target for line in lines if line.keys.get("method") == "cats" and (line.run or line.state)}
    why = (
        f"CATS drops neurons of the MLP alone: on this model at most {100 * most:.1f} % of the bytes, with all dropped"
    )
    blank = {key: "-" for key in spec.keys if key not in ("sparsity", "method")}
    return [
        Line(target, {"method": "cats", **blank}, None, None, "cannot reach", why)
        for target in targets
        if target >= most and target not in there
    ]


def with_failures(spec: Spec, targets: list[float], failures: list[Failure], lines: list[Line]) -> list[Line]:
    """Lines without a run say why where their run was tried; what was tried and has no line gets one."""
    if not {"method"} <= set(spec.keys) <= _TOLD:
        return lines
    left = [f for f in failures if _concerns(spec, f) and any(abs(f.target - target) < 1e-9 for target in targets)]
    filled = []
    for line in lines:
        tried = next((failure for failure in left if _is_of(failure, line)), None)
        left = [failure for failure in left if not _is_of(failure, line)]
        if tried is not None and line.run is None and not line.state:
            line = replace(line, state=tried.state, why=tried.why)
        filled.append(line)
    for tried in left:
        keys = {"method": tried.label, "calibration": tried.calibration, "quantization": tried.quantization}
        keys = {key: keys[key] for key in spec.keys if key in keys}
        new = Line(tried.target, keys, None, None, tried.state, tried.why)
        if not any((line.target, line.keys) == (new.target, new.keys) for line in filled):
            filled.append(new)
    return filled


_TOLD = {"sparsity", "method", "calibration", "quantization"}
"""Keys of a row that a failure tells."""


def _concerns(spec: Spec, failure: Failure) -> bool:
    """Whether a table would have shown the run."""
    wanted = bool(spec.perplexity and failure.texts) or bool(set(spec.tasks) & set(failure.tasks))
    wanted = wanted and (failure.quantization == NONE or "quantization" in spec.keys)
    return wanted and (not spec.presets or failure.method in spec.presets)


def _is_of(failure: Failure, line: Line) -> bool:
    """Whether a failure is of a line's method, target, calibration and quantisation."""
    if match.named("quantization", line.keys.get("quantization", NONE)) != failure.quantization:
        return False
    if abs(failure.target - line.target) > 1e-9 or line.keys.get("calibration", "") not in ("", failure.calibration):
        return False
    if line.run is not None:
        return line.run.method == failure.label
    named = line.keys["method"]
    if named in ("topk", "topk+gs") and (failure.schedule == "uniform") != (named == "topk"):
        return False
    return match.named("method", named) in (failure.method, failure.label)


def ordered(lines: list[Line]) -> list[Line]:
    """By target; within it printed settings in their order, then the others as they come."""
    return sorted(lines, key=lambda line: line.target)
