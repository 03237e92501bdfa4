"""A table of measured runs from its specification: a block for each model with records, one for all without."""

from __future__ import annotations

from dataclasses import dataclass, replace

from larosa_analysis import paper
from larosa_analysis.paper import Printed
from larosa_analysis.records.conditions import described
from larosa_analysis.records.failures import Failure
from larosa_analysis.records.run import Run
from larosa_analysis.records.store import RecordStore
from larosa_analysis.tables import match, quantised, texts
from larosa_analysis.tables.cells import MISSING, Block, Cell, Footnotes, Missing, Table
from larosa_analysis.tables.commands import command
from larosa_analysis.tables.group import choose
from larosa_analysis.tables.lines import (
    Line,
    of_one_schedule,
    ordered,
    own_levels,
    own_lines,
    printed_lines,
    setting,
    settings,
    unreachable,
    useful,
    with_failures,
)
from larosa_analysis.tables.marks import best_lines
from larosa_analysis.tables.measure import Context, flops_cell, measured, overhead_as_stored
from larosa_analysis.tables.names import short_names, short_schedule
from larosa_analysis.tables.spec import Measure, Spec

LEVELS = ("schedule", "target, %", "nominal sparsity, %", "weight sparsity, %", "bytes read, %")
READING = (
    "Printed values stand as the paper prints them, ours beside them; ± is one standard error, for site sparsities the "
    "standard deviation over tokens. A value is bold where it is the best of its sparsity and a paired test (blocks or "
    "examples, 5 %) tells it from the runner-up. Of several schedules a printed row takes the paper's, any other the "
    "one with the smallest perplexity. *Weight sparsity*: achieved, weight bytes not read / those of the "
    "seven projections; *nominal sparsity*: achieved, by the paper's count; *bytes read*: weight bytes read, run-time "
    "overhead included, % of dense. A run whose achieved sparsity, by its own metric, is more than 0.5 points off its "
    "target is not compared (*off*)."
)


@dataclass(frozen=True)
class _Model:
    """One model's lines in a table."""

    name: str
    lines: list[Line]
    runs: list[Run]
    printed: bool

    @property
    def measured(self) -> bool:
        """Whether a sparse run fills a line."""
        return any(line.run is not None and line.run.entry.family != "dense" for line in self.lines)


def build(spec: Spec, store: RecordStore, context: Context) -> Table:
    """The table."""
    rows = paper.rows(spec.file, spec.spread)
    targets = sorted({float(row["sparsity"]) for row in rows} - (set() if spec.quantised else {0.0}))
    notes, excluded = Footnotes(), []
    for remark in paper.remarks(spec.number):
        notes.number(remark)
    models = []
    unprinted = [model for model in store.models if spec.own_models and model not in paper.models()]
    for name in dict.fromkeys([*(row["model"] for row in rows), *unprinted]):
        levels = [] if spec.any_level and name not in paper.models() else targets
        runs = useful(spec, rows, levels, store.of(name, spec.quantised))
        group = choose(
            runs, spec.perplexity, (*spec.tasks, *_more_tasks(spec, runs)), spec.free,
            lambda run: (setting(spec, run), round(20 * run.entry.target)),
        )  # fmt: skip
        excluded += [f"{name}: {reason}" for reason in group.excluded]
        failures = [failure for failure in store.failures if failure.model == name]
        kept = group.runs if name in paper.models() else _compared(spec, group.runs)
        models.append(_model(spec, name, rows, targets, kept, failures))
    shown = [model for model in models if model.measured]
    blocks = []
    for model in sorted(shown, key=lambda model: model.printed):
        blocks.append(_block(spec, model, context, notes))
        if spec.quantised and (pairs := quantised.block(model.name, model.runs)) is not None:
            blocks.append(pairs)
    empty = [model for model in models if model.printed and not model.measured]
    if empty:
        blocks.append(_unmeasured(spec, empty, context, notes))
    missing = [gap for model in models if (gap := _missing(spec, model, context)) is not None]
    return Table(spec.number, spec.title, blocks, READING if shown else "", notes.texts, missing, excluded)


def _compared(spec: Spec, runs: list[Run]) -> list[Run]:
    """What a model that the paper has not is shown with, nothing printed to say which texts and schedules belong."""
    if spec.texts:
        runs = texts.on(runs, texts.main_texts(runs, lambda run: (setting(spec, run), round(20 * run.entry.target))))
    return of_one_schedule(runs) if spec.one_schedule else runs


def _model(
    spec: Spec, name: str, rows: list[Printed], targets: list[float], runs: list[Run], failures: list[Failure]
) -> _Model:
    model_rows = [row for row in rows if row["model"] == name]
    printed = bool(model_rows)
    if not model_rows:
        model_rows = settings(rows, spec)
    lines = printed_lines(spec, model_rows, runs, own_model=not printed)
    levels = own_levels(runs) if spec.any_level and not printed else targets
    lines += own_lines(spec, levels, runs, lines)
    lines = with_failures(spec, levels, failures, lines)
    lines += unreachable(spec, targets, runs, lines)
    return _Model(name, ordered(lines), runs, printed)


def _block(spec: Spec, model: _Model, context: Context, notes: Footnotes) -> Block:
    """A model with records."""
    names = short_names(line.run.method for line in model.lines if line.run)
    columns = [*_key_columns(spec), *LEVELS]
    cells = [[*_keys(spec, line, names, notes), *_levels(line)] for line in model.lines]
    unmeasured = []
    for measure in _measures(spec, model):
        if model.printed and measure.printed:
            columns.append(f"{measure.title}, printed")
            for line, row in zip(model.lines, cells, strict=True):
                row.append(_printed(spec, measure, line, notes))
        ours = [_ours(line, measure, model.name, context, notes) for line in model.lines]
        if not model.printed and not any(cell.value is not None for cell in ours):
            unmeasured.append(measure.title)
            continue
        columns.append(f"{measure.title}, ours" if model.printed and measure.printed else measure.title)
        best = best_lines(model.lines, measure.source, ours)
        for number, (row, cell) in enumerate(zip(cells, ours, strict=True)):
            row.append(replace(cell, best=number in best))
    tasks = (*spec.tasks, *_more_tasks(spec, model.runs))
    caption = described([line.run for line in model.lines if line.run], spec.perplexity, tasks)
    if unmeasured:
        caption += f" No record has {', '.join(unmeasured)}."
    return Block(model.name, tuple(columns), cells, caption + _legend(names))


def _measures(spec: Spec, model: _Model) -> list[Measure]:
    """The printed measures, then texts and tasks that the paper has not; the sparsity columns tell a count."""
    measures = [measure for measure in spec.measures if model.printed or measure.source != "count"]
    known = {measure.source for measure in measures}
    measures += [Measure("", "bytes", "bytes read, % of 16 bits per weight")] * spec.quantised
    held = sorted({text for run in model.runs for text in run.entry.nll}) if spec.texts else []
    measures += [Measure("", f"ppl:{text}", f"{text} perplexity") for text in held if f"ppl:{text}" not in known]
    return measures + [Measure("", f"task:{task}", f"{task}, %") for task in _more_tasks(spec, model.runs)]


def _more_tasks(spec: Spec, runs: list[Run]) -> list[str]:
    measured = {task for run in runs for task in run.scores}
    return sorted(measured - set(spec.tasks)) if spec.more_tasks else []


def _key_columns(spec: Spec) -> list[str]:
    return ["sparsity, %" if key == "sparsity" else key for key in spec.keys]


def _keys(spec: Spec, line: Line, names: dict[str, str], notes: Footnotes) -> list[Cell]:
    marks: dict[str, tuple[int, ...]] = {}
    for column, text in paper.notes(spec.number, line.printed or {}):
        if column in spec.keys:
            marks[column] = (*marks.get(column, ()), notes.number(text))
    shown = {"sparsity": f"{100 * line.target:g}"} | {key: names.get(value, value) for key, value in line.keys.items()}
    return [Cell(shown[key], notes=marks.get(key, ())) for key in spec.keys]


def _legend(names: dict[str, str]) -> str:
    """What short names stand for."""
    long = [f"{short}: {label.partition(' (')[2].rstrip(')')}" for label, short in names.items() if "(" in label]
    return f" Methods: {'; '.join(long)}." if long else ""


def _levels(line: Line) -> list[Cell]:
    """Schedule, then target, nominal sparsity, weight sparsity, bytes read."""
    run = line.run
    if run is None or run.entry.family == "dense":
        return [Cell()] * len(LEVELS)
    shown = (
        match.nominal_sparsity(run),
        run.entry.weight_sparsity,
        1 - run.entry.weight_sparsity + overhead_as_stored(run),
    )
    asked, nominal = Cell(value=100 * run.entry.target, digits=1), match.metric(run) == "nominal"
    if nominal:
        asked = Cell(f"{asked.shown} (nominal)")
    numbers = [Cell(value=100 * value, digits=1) for value in shown]
    if not match.stands(run, line.target):
        place = 0 if nominal else 1  # that of the run's own metric
        numbers[place] = Cell(f"{numbers[place].shown} off")
    return [Cell(short_schedule(run)), asked, *numbers]


def _printed(spec: Spec, measure: Measure, line: Line, notes: Footnotes) -> Cell:
    if line.printed is None:
        return Cell()
    row = line.printed
    footnotes = paper.notes(spec.number, row)
    marks = tuple(notes.number(text) for column, text in footnotes if column in ("", measure.printed))
    error = row.get(measure.printed_error, "")
    return Cell(row[measure.printed] + (f" ± {error}" if error else ""), notes=marks)


def _ours(line: Line, measure: Measure, model: str, context: Context, notes: Footnotes) -> Cell:
    """From the run; operations need none, only the shape."""
    if line.run is not None:
        return measured(measure.source, line.run, context)
    if measure.source == "flops" and model in context.shapes:
        return flops_cell(context.shapes[model], line.keys["rotation"])
    return Cell(line.state or MISSING, notes=(notes.number(line.why),) if line.why else ())


def _unmeasured(spec: Spec, models: list[_Model], context: Context, notes: Footnotes) -> Block:
    """The printed rows of all models without a record."""
    columns = ["model", *_key_columns(spec)]
    for measure in spec.measures:
        columns += [f"{measure.title}, printed", f"{measure.title}, ours"]
    rows = []
    for model in models:
        for line in model.lines:
            row = [Cell(model.name), *_keys(spec, line, {}, notes)]
            for measure in spec.measures:
                ours = _ours(line, measure, model.name, context, notes)
                row += [_printed(spec, measure, line, notes), ours]
            rows.append(row)
    return Block("The paper's rows that no record of ours fills", tuple(columns), rows, folded=True)


def _missing(spec: Spec, model: _Model, context: Context) -> Missing | None:
    """Cells of ours that nothing fills; of a model that the paper has not, those of the table's settings, without texts
    and tasks that are the paper's alone."""
    measures = list(spec.measures)
    if not model.printed:
        measures = [m for m in _measures(spec, model) if (m.printed and m.any_model) or _has(model, m, context)]
        measures = measures or list(spec.measures[:1])
    pairs, notes = [(line, measure) for line in model.lines for measure in measures], Footnotes()
    cells = [_ours(line, measure, model.name, context, notes) for line, measure in pairs]
    empty = sum(cell.text == MISSING for cell in cells)
    if not model.lines:
        empty = len(paper.rows(spec.file, spec.spread))
    return Missing(model.name, empty, command(spec.name, model.name)) if empty else None


def _has(model: _Model, measure: Measure, context: Context) -> bool:
    """Whether some run of a model holds a measure."""
    cells = [measured(measure.source, line.run, context) for line in model.lines if line.run is not None]
    return any(cell.value is not None for cell in cells)
