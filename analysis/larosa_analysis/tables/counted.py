"""Table 19: operations of 2048 tokens by model, from shapes alone, beside the printed ones."""

from __future__ import annotations

from larosa_analysis import paper
from larosa_analysis.tables.cells import Block, Cell, Footnotes, Table
from larosa_analysis.tables.flops import Shape, adapters, layer_weights, tflops

NUMBER = 19
HALF = 0.5
_BYTES = 2
_READING = (
    "TFLOPs of 2048 tokens: 2 T (weights of the seven projections and the head) + 4 T^2 H d L for attention, and for "
    "larosa 2 T D^2 per layer for its residual adapter. The printed numbers count no operation that sparsity skips; "
    "the last three columns are ours, with half of the projections' weights skipped and the adapters kept, and the "
    "weight bytes that one decoded token then reads (two bytes per weight, without the head)."
)


def build(shapes: dict[str, Shape], own_models: list[str]) -> Table:
    """The paper's models, then ours. Largest difference to a printed value that is no misprint: in the caption."""
    rows = {row["model"]: row for row in paper.rows("table19_tflops")}
    pairs = [(f"{phase}, {form}", f"{phase}_{form}") for phase in ("prefill", "decode") for form in ("dense", "larosa")]
    columns = ["model", *(f"{title}, {source}" for title, _ in pairs for source in ("printed", "ours"))]
    columns += ["decode, larosa at 50 %", "GB per token, dense", "GB per token, larosa at 50 %"]
    notes, lines, worst = Footnotes(), [], 0.0
    for name in dict.fromkeys([*rows, *(model for model in own_models if model in shapes)]):
        row, shape = rows.get(name, {}), shapes[name]
        marks = dict(paper.notes(NUMBER, row)) if row else {}
        line = [Cell(name)]
        for _, key in pairs:
            value = tflops(shape, adapters(shape, "layer") if key.endswith("larosa") else 0)
            mark = (notes.number(marks[key]),) if key in marks else ()
            if row and key not in marks:
                worst = max(worst, abs(value - float(row[key])))
            line += [Cell(row.get(key, ""), notes=mark), Cell(value=value, digits=3)]
        lines.append(line + _half(shape))
    caption = f"Largest difference to a printed value that is no misprint: {worst:.3f} TFLOPs."
    return Table(NUMBER, "Operations", [Block("", tuple(columns), lines, caption)], _READING, notes.texts)


def _half(shape: Shape) -> list[Cell]:
    """At half of the weights: TFLOPs, then GB per token dense and sparse."""
    extra = adapters(shape, "layer")
    weights = shape["num_hidden_layers"] * layer_weights(shape)
    sparse = (1 - HALF) * weights + extra * shape["hidden_size"] ** 2
    return [
        Cell(value=tflops(shape, extra, HALF), digits=3),
        Cell(value=_BYTES * weights / 1e9, digits=3),
        Cell(value=_BYTES * sparse / 1e9, digits=3),
    ]
