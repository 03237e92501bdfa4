"""Tables as Markdown, LaTeX and CSV; the same words in each."""

from __future__ import annotations

import csv
import io
import re

from larosa_analysis.tables.cells import Block, Cell, Table
from larosa_analysis.tables.commands import in_words

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"$<$", ">": r"$>$",
}  # fmt: skip


def heading(table: Table) -> str:
    """`Table 2. Title`."""
    return f"Table {table.number}. {table.title}"


def missing(table: Table) -> list[str]:
    """One line per model: how many cells, and the command."""
    return [f"{m.what}: {m.cells} cell{'s' * (m.cells > 1)}: {in_words(m.command)}" for m in table.missing]


def excluded(table: Table) -> str:
    """What was not shown, and why; empty if nothing."""
    return f"Excluded, because they differ from the rows shown in: {'; '.join(table.excluded)}." * bool(table.excluded)


def markdown(table: Table) -> str:
    """A section with a newline at its end."""
    parts = [f"# {heading(table)}", table.reading]
    for block in table.blocks:
        parts.append(block_markdown(block))
    parts.append("\n".join(_footnotes(table)))
    if table.missing:
        parts.append("Missing cells, and what fills them:\n\n" + "\n".join(f"* {line}" for line in missing(table)))
    parts.append(excluded(table))
    return "\n\n".join(part for part in parts if part) + "\n"


def block_markdown(block: Block) -> str:
    """Title, conditions, rows."""
    parts = [f"## {block.title}" if block.title else "", block.caption, _markdown_rows(block)]
    return "\n\n".join(part for part in parts if part)


def brief(table: Table) -> str:
    """For a README: the blocks with a value of ours and their footnotes, without the rest."""
    shown = [block for block in table.blocks if not block.folded]
    marked = {number for block in shown for row in block.rows for cell in row for number in cell.notes}
    notes = "\n".join(_footnotes(table, marked))
    parts = [f"**{heading(table)}**", *map(block_brief, shown), notes]
    return "\n\n".join(part for part in parts if part)


def block_brief(block: Block) -> str:
    """A block with its title as a bold line: a README has its own headings."""
    return re.sub(r"^## (.+)$", r"**\1**", block_markdown(block), flags=re.MULTILINE)


def _footnotes(table: Table, marked: set[int] | None = None) -> list[str]:
    """All, or those that are marked."""
    numbered = enumerate(table.footnotes, start=1)
    return [f"[{number}] {text}." for number, text in numbered if marked is None or number in marked]


def _markdown_rows(block: Block) -> str:
    lines = [block.columns, ["---"] * len(block.columns)]
    lines += [[_markdown_cell(cell) for cell in row] for row in block.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.shown}**" if cell.best else cell.shown
    return text + "".join(f" [{number}]" for number in cell.notes)


def latex(table: Table) -> str:
    """A longtable per block (packages longtable and booktabs), text around it as paragraphs."""
    parts = [rf"\subsection*{{{_escaped(heading(table))}}}", _escaped(table.reading)]
    for block in table.blocks:
        parts += [_latex_rows(block), _escaped(block.caption)]
    parts += [rf"[{number}] {_escaped(text)}." for number, text in enumerate(table.footnotes, start=1)]
    parts += [rf"Missing: {_latex_line(line)}" for line in missing(table)]
    parts.append(_escaped(excluded(table)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _latex_rows(block: Block) -> str:
    head = " & ".join(_escaped(column) for column in block.columns)
    title = (
        [rf"\multicolumn{{{len(block.columns)}}}{{l}}{{\textbf{{{_escaped(block.title)}}}}} \\"] if block.title else []
    )
    lines = [rf"\begin{{longtable}}{{{'l' * len(block.columns)}}}", *title, r"\toprule", rf"{head} \\", r"\midrule"]
    lines += [" & ".join(_latex_cell(cell) for cell in row) + r" \\" for row in block.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{longtable}"])


def _latex_cell(cell: Cell) -> str:
    text = _escaped(cell.shown)
    text = rf"\textbf{{{text}}}" if cell.best else text
    return text + "".join(rf"\textsuperscript{{{number}}}" for number in cell.notes)


def _escaped(text: str) -> str:
    plain = re.sub(r"\*([^*]+)\*", r"\1", text)
    return "".join(_LATEX.get(letter, letter) for letter in plain)


def _latex_line(line: str) -> str:
    before, *code = line.split("`")
    return _escaped(before) + (rf"\texttt{{{_escaped(code[0])}}}" if code else "")


def csv_text(table: Table) -> str:
    """Every row of every block, unrounded; a standard error stands in a column of its own, as do footnotes."""
    names = list(dict.fromkeys(column for block in table.blocks for column in block.columns))
    errors = {
        name
        for block in table.blocks
        for row in block.rows
        for name, cell in zip(block.columns, row, strict=True)
        if cell.error is not None
    }
    head = ["block", *(title for name in names for title in ([name, f"{name}, ±"] if name in errors else [name]))]
    out = io.StringIO()
    writer = csv.DictWriter(out, [*head, "best", "notes"], restval="", lineterminator="\n")
    writer.writeheader()
    for block in table.blocks:
        for row in block.rows:
            writer.writerow({"block": block.title} | _csv_row(table, block.columns, row))
    return out.getvalue()


def _csv_row(table: Table, columns: tuple[str, ...], row: list[Cell]) -> dict[str, object]:
    line: dict[str, object] = {}
    for name, cell in zip(columns, row, strict=True):
        line[name] = cell.text if cell.value is None else round(cell.value, 6)
        if cell.error is not None:
            line[f"{name}, ±"] = round(cell.error, 6)
    marks = sorted({number for cell in row for number in cell.notes})
    line["best"] = "; ".join(name for name, cell in zip(columns, row, strict=True) if cell.best)
    line["notes"] = "; ".join(table.footnotes[number - 1] for number in marks)
    return line
