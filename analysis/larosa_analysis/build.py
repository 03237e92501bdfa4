"""All tables and figures of the paper with ours beside them, and one report, from records alone.

    python -m larosa_analysis.build [--records analysis/records] [--out report] [--readme README.md [--check]]

`--out` gets tables/tableNN.{md,tex,csv}, figures/*.{png,pdf} and report.html, one file to read offline. They tell
neither when nor where they were made: the same records give the same bytes. `--readme` fills the tables that a README
has markers for, methods, speed, and tableNN, and writes the figures that it shows from `analysis/images/`. With
`--check` it only compares: exit status 1 if a table is another or a figure is not there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt

from larosa.packaged import in_checkout, packaged
from larosa_analysis import bank, readme, rows, speed
from larosa_analysis.bank import Bank
from larosa_analysis.figures import every as figures
from larosa_analysis.figures.drawn import Drawn
from larosa_analysis.main_result import Result, results
from larosa_analysis.method_summary import summary
from larosa_analysis.records import RecordsError, load, write_atomically
from larosa_analysis.report import Image, Picture, html
from larosa_analysis.style import both
from larosa_analysis.tables import added, every, flops, render
from larosa_analysis.tables.cells import Table

_ROOT = packaged("conf").parent
RECORDS = _ROOT / "analysis" / "records"
TIMINGS = _ROOT / "kernels" / "benchmarks" / "records"
"""Those of the repository; an installed wheel has none, and the command asks for folders."""
MODELS = packaged("conf") / "model"
FORMS = {"md": render.markdown, "tex": render.latex, "csv": render.csv_text}


def write_tables(tables: list[Table], folder: Path) -> None:
    """Every table in every form."""
    for table in tables:
        for ending, form in FORMS.items():
            write_atomically(folder / f"{table.name}.{ending}", form(table).encode())


def write_figures(drawn: list[Drawn], folder: Path) -> list[Picture]:
    """Every figure as PNG and PDF; what the report embeds."""
    pictures = []
    for own in drawn:
        files = both(own.figure) if own.figure is not None else {}
        for ending, content in files.items():
            write_atomically(folder / f"{own.name}.{ending}", content)
        image = Image.of(files["png"]) if files else None
        model = own.name.partition("-")[2]
        title = f", {model}" if model else ""
        pictures.append(Picture(own.name, own.title, own.caption, own.missing, image, title))
    return pictures


def _named(found: list[Result]) -> list[tuple[str, Result]]:
    """Every main result as main-MODEL, numbered where a model has several."""
    models, named = [result.block.title for result in found], []
    for place, (result, model) in enumerate(zip(found, models, strict=True)):
        number = models[:place].count(model)
        named.append((f"main-{model}{f'-{number + 1}' if number else ''}", result))
    return named


def write_results(found: list[Result], folder: Path) -> list[Image]:
    """The figure of every main result."""
    images = []
    for name, result in _named(found):
        files = both(result.figure)
        for ending, content in files.items():
            write_atomically(folder / f"{name}.{ending}", content)
        images.append(Image.of(files["png"]))
    return images


def readme_tables(tables: list[Table], records: Path, timings: Path) -> dict[str, Callable[[], str]]:
    """What a README may ask for, by the name of its markers; `speed` is of the timings at one length."""
    found: dict[str, Callable[[], str]] = {table.name: partial(render.brief, table) for table in tables}
    return found | {
        "codes": lambda: _codes(tables),
        "methods": lambda: _methods(records),
        "speed": lambda: speed.table(speed.read(sorted(timings.glob("decode-*.json")))),
    }


def _codes(tables: list[Table]) -> str:
    """What codes add to perplexity, of every model with runs on them."""
    blocks = [block for table in tables for block in table.blocks if block.title.endswith(added.TITLE)]
    if not blocks:
        raise RecordsError(
            "no record on rounded weights has one on plain weights beside it: a README cannot show codes"
        )
    return "\n\n".join(map(render.block_brief, blocks))


def _methods(folder: Path) -> str:
    """The summary of the method table, of the records of larosa.compare."""
    entries, texts = load(sorted(folder.glob("methods-*.jsonl")))
    return summary(rows.build(entries, texts, None))


def fill_readme(path: Path, known: dict[str, Callable[[], str]], check: bool) -> bool:
    """Put the tables between their markers; returns whether they stood there already. Raises RecordsError."""
    before = after = path.read_text(encoding="utf-8")
    for name in readme.names(before):
        if name not in known:
            raise RecordsError(f"{path.name} asks for a table {name!r}; there is {', '.join(known)}")
        after = readme.inserted(after, name, known[name](), path.name)
    if not check:
        write_atomically(path, after.encode())
    return before == after


def readme_images(path: Path, found: Bank, check: bool) -> list[Path]:
    """Draw the figures that a README shows; returns those that were not there. Raises RecordsError for another."""
    files = {Path(link).stem: path.parent / link for link in readme.images(path.read_text(encoding="utf-8"))}
    absent = [file for file in files.values() if not file.is_file()]
    if check or not files:
        return absent
    figures_of = {own.name: own.figure for own in figures.build(found) if own.figure is not None}
    figures_of |= {name: result.figure for name, result in _named(results(found))}
    for name, file in files.items():
        if name not in figures_of:
            raise RecordsError(f"{path.name} shows {file.name}; the records give {', '.join(figures_of)}")
        write_atomically(file, both(figures_of[name])["png"])
    plt.close("all")
    return absent


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m larosa_analysis.build", description="Build tables and figures.")
    here = in_checkout()
    parser.add_argument(
        "--records",
        type=Path,
        default=RECORDS if here else None,
        required=not here,
        help="folder of compact records (python -m larosa_analysis.compact RUNS FOLDER/NAME.jsonl)",
    )
    parser.add_argument(
        "--speed", type=Path, default=TIMINGS if here else None, help="folder of decode-*.json (default: --records)"
    )
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the models' shapes")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="FOLDER")
    parser.add_argument("--readme", type=Path, help="fill the tables between its markers, draw the figures it shows")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if --readme's tables differ")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status: 1 if --check finds a difference, 2 if the records cannot be read."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.check and not given.readme:
        parser.error("--check needs --readme")
    if not given.records.is_dir():
        parser.error(
            f"--records {given.records}: no such folder; expected one of compact records (larosa_analysis.compact)"
        )
    given.speed = given.speed or given.records
    try:
        found = bank.read(given.records, given.speed)
        tables = every.build(found, flops.shapes(given.models))
        if given.readme:
            same = fill_readme(given.readme, readme_tables(tables, given.records, given.speed), given.check)
            absent = readme_images(given.readme, found, given.check)
            if given.check:
                print(f"{given.readme.name}'s tables are {'' if same else 'not '}what the records give")
                print("".join(f"{file.name}, which it shows, is not there\n" for file in absent), end="")
                return int(not same or bool(absent))
        _write(found, tables, given.out)
    except (RecordsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _write(found: Bank, tables: list[Table], out: Path) -> None:
    write_tables(tables, out / "tables")
    pictures, main_results = write_figures(figures.build(found), out / "figures"), results(found)
    images = write_results(main_results, out / "figures")
    write_atomically(out / "report.html", html(found, tables, pictures, main_results, images).encode())
    drawn = sum(bool(picture.image) for picture in pictures)
    print(f"{out / 'report.html'}: {len(tables)} tables and {drawn} figures from {len(found.runs)} runs")


if __name__ == "__main__":
    sys.exit(main())
