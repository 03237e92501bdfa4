"""Table 11: the coefficients of least perplexity, printed, and of our runs that tried several."""

from __future__ import annotations

from larosa_analysis import paper
from larosa_analysis.records.conditions import described
from larosa_analysis.records.run import Run
from larosa_analysis.records.store import RecordStore
from larosa_analysis.tables import match, texts
from larosa_analysis.tables.cells import MISSING, Block, Cell, Footnotes, Missing, Table
from larosa_analysis.tables.commands import command
from larosa_analysis.tables.flops import Shape
from larosa_analysis.tables.group import every

NUMBER = 11
LEAST = 3
"""So many settings must have been tried for one of them to be the best of a search."""
_PRESET = "larosa/paper"
_NAMES = ("alpha1", "alpha2", "alpha3", "alpha4")
_READING = (
    "Coefficients of h1 to h4 under 3 a1 + a2 = 4 and 2 a3 + M a4 = 2 + M, M = I / D. *Of the constraint*: alpha4 from "
    "the printed alpha3 and the model's own shape. Ours: the runs of method=larosa/paper whose coefficients meet the "
    "constraints, least perplexity on the text that most of them were measured on, where at least three settings were "
    "tried at one target."
)


def build(store: RecordStore, shapes: dict[str, Shape]) -> Table:
    """Every printed model; then those of ours in which coefficients were searched."""
    rows = {row["model"]: row for row in paper.rows("table11_optimal_alpha")}
    columns = ["model", *(f"{name}, printed" for name in _NAMES), "M, printed", "M of the shape"]
    columns += ["alpha4 of the constraint", *(f"{name}, ours" for name in _NAMES), "sparsity, %", "settings tried"]
    notes, lines, missing, used = Footnotes(), [], [], []
    for name in dict.fromkeys([*rows, *store.models]):
        row, shape = rows.get(name, {}), shapes.get(name)
        runs = store.of(name)
        tried = max((_tried(group.runs) for group in every(_searched(runs), texts=True, tasks=())), key=len, default=[])
        marks = dict(paper.notes(NUMBER, row)) if row else {}
        line = [Cell(name)]
        for key in (*_NAMES, "M_printed"):
            line.append(Cell(row.get(key, ""), notes=(notes.number(marks[key]),) if key in marks else ()))
        lines.append([*line, *_of_shape(row, shape), *_ours(tried)])
        used += tried
        if not tried:
            missing.append(Missing(name, len(_NAMES), command(f"table{NUMBER}", name)))
    caption = described(used) if used else ""
    return Table(NUMBER, "Coefficients of least perplexity", [Block("", tuple(columns), lines, caption)], _READING,
                 notes.texts, missing)  # fmt: skip


def _of_shape(row: dict[str, str], shape: Shape | None) -> list[Cell]:
    """M, and the alpha4 that the constraint gives for the printed alpha3."""
    if shape is None:
        return [Cell(), Cell()]
    ratio = shape["intermediate_size"] / shape["hidden_size"]
    if not row:
        return [Cell(value=ratio, digits=4), Cell()]
    return [Cell(value=ratio, digits=4), Cell(value=(2 + ratio - 2 * float(row["alpha3"])) / ratio)]


def _searched(runs: list[Run]) -> list[Run]:
    """The runs of LaRoSA whose coefficients meet the constraints."""
    pairs = [(run, match.alphas(run)) for run in runs if run.preset == _PRESET]
    return [run for run, alphas in pairs if alphas is not None and abs(3 * alphas[0] + alphas[1] - 4) < 0.01]


def _tried(runs: list[Run]) -> list[Run]:
    """The runs of the target and text at which most settings were tried; none where that are fewer than LEAST."""
    by_text: dict[tuple[float, str], dict[tuple[float, ...], Run]] = {}
    for run in runs:
        coefficients = match.alphas(run)
        for text in run.entry.nll if coefficients is not None else ():
            by_text.setdefault((run.entry.target, text), {})[tuple(coefficients or ())] = run
    where = max(sorted(by_text), key=lambda key: len(by_text[key]), default=None)
    if where is None or len(by_text[where]) < LEAST:
        return []
    return texts.on(list(by_text[where].values()), {where[1]})


def _ours(tried: list[Run]) -> list[Cell]:
    if not tried:
        return [*[Cell(MISSING)] * len(_NAMES), Cell(), Cell()]
    best = min(tried, key=lambda run: (match.mean_perplexity(run, set(run.entry.nll)), run.entry.identity))
    coefficients = match.alphas(best)
    assert coefficients is not None  # _tried asked
    return [*(Cell(value=alpha) for alpha in coefficients), Cell(f"{100 * best.entry.target:g}"), Cell(str(len(tried)))]
