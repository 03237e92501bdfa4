"""All tables and figures of the paper with ours beside them, and one report, from records alone.

    python -m larosa_analysis.build [--records analysis/records] [--out report]
    python -m larosa_analysis.build --readme README.md --docs docs [--check]

`--out` gets tables/tableNN.{md,tex,csv}, figures/*.{png,pdf} and report.html, one file to read offline. They tell
neither when nor where they were made: the same records give the same bytes. `--readme` and `--docs` fill the tables
that these pages have markers for (:mod:`larosa_analysis.report.marked_tables`), and draw the figures that they show
from `analysis/images/`. With `--check` they are only compared: exit status 1 if a table differs or a figure is missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from larosa.records.disk import write_atomically
from larosa.records.packaged import in_checkout, packaged
from larosa_analysis.figures import every as figures
from larosa_analysis.figures.drawn import Drawn
from larosa_analysis.records import store
from larosa_analysis.records.entry import RecordsError
from larosa_analysis.records.store import RecordStore
from larosa_analysis.report import marked_tables, short_tables
from larosa_analysis.report.main_result import Result, results
from larosa_analysis.report.page import Image, Picture, html
from larosa_analysis.style import both
from larosa_analysis.tables import every, flops, render
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
    for entry in drawn:
        files = both(entry.figure) if entry.figure is not None else {}
        for ending, content in files.items():
            write_atomically(folder / f"{entry.name}.{ending}", content)
        image = Image.of(files["png"]) if files else None
        model = entry.name.partition("-")[2]
        title = f", {model}" if model else ""
        pictures.append(Picture(entry.name, entry.title, entry.caption, entry.missing, image, title))
    return pictures


def _named(main_results: list[Result]) -> list[tuple[str, Result]]:
    """Every main result as main-MODEL, numbered where a model has several."""
    models, named = [result.block.title for result in main_results], []
    for place, (result, model) in enumerate(zip(main_results, models, strict=True)):
        number = models[:place].count(model)
        named.append((f"main-{model}{f'-{number + 1}' if number else ''}", result))
    return named


def write_results(main_results: list[Result], folder: Path) -> list[Image]:
    """The figure of every main result."""
    images = []
    for name, result in _named(main_results):
        files = both(result.figure)
        for ending, content in files.items():
            write_atomically(folder / f"{name}.{ending}", content)
        images.append(Image.of(files["png"]))
    return images


def draw_images(page: Path, records: RecordStore, folder: Path, check: bool) -> list[Path]:
    """Draw the figures that a page shows; returns those that were not there. Raises RecordsError for another."""
    files = {Path(link).stem: page.parent / link for link in marked_tables.images(page.read_text(encoding="utf-8"))}
    absent = [file for file in files.values() if not file.is_file()]
    if check or not files:
        return absent
    figures_of = {drawn.name: drawn.figure for drawn in figures.build(records) if drawn.figure is not None}
    figures_of |= {name: result.figure for name, result in _named(results(records))}
    if "models" in files:
        figures_of["models"] = short_tables.quality_figure(marked_tables.evidence(folder))
    for name, file in files.items():
        if name not in figures_of:
            raise RecordsError(f"{page.name} shows {file.name}; the records give {', '.join(figures_of)}")
        write_atomically(file, both(figures_of[name])["png"])
    plt.close("all")
    return absent


def _pages(readme: Path | None, docs: Path | None) -> list[Path]:
    """README, and the pages of docs that have a table or show a figure."""
    pages = [] if readme is None else [readme]
    for page in sorted(docs.glob("*.md")) if docs is not None else ():
        text = page.read_text(encoding="utf-8")
        if marked_tables.names(text) or marked_tables.images(text):
            pages.append(page)
    return pages


def _filled(page: Path, known: marked_tables.Known, records: RecordStore, folder: Path, check: bool) -> bool:
    """Fill one page, or compare it; returns whether all that it shows was there already."""
    same, absent = marked_tables.fill(page, known, check), draw_images(page, records, folder, check)
    if check:
        print(f"{page.name}: its tables are {'' if same else 'not '}what the records give")
        print("".join(f"{file.name}, which it shows, is not there\n" for file in absent), end="")
    return same and not absent


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
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: report, where no page is named")
    parser.add_argument("--readme", type=Path, help="page whose marked tables are filled and whose figures are drawn")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="folder of more such pages")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page's tables differ")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status: 1 if --check finds a difference, 2 if the records cannot be read."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.check and not (given.readme or given.docs):
        parser.error("--check needs --readme or --docs")
    given.speed = given.speed or given.records
    try:
        records = store.read(given.records, given.speed)
        tables = every.build(records, flops.shapes(given.models))
        known = marked_tables.known_tables(tables, given.records, given.speed)
        same = [_filled(page, known, records, given.records, given.check) for page in _pages(given.readme, given.docs)]
        if given.check:
            return int(not all(same))
        if given.out or not same:
            _write(records, tables, given.out or Path("report"))
    except (RecordsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _write(records: RecordStore, tables: list[Table], out: Path) -> None:
    write_tables(tables, out / "tables")
    pictures, main_results = write_figures(figures.build(records), out / "figures"), results(records)
    images = write_results(main_results, out / "figures")
    write_atomically(out / "report.html", html(records, tables, pictures, main_results, images).encode())
    drawn = sum(bool(picture.image) for picture in pictures)
    print(f"{out / 'report.html'}: {len(tables)} tables and {drawn} figures from {len(records.runs)} runs")


if __name__ == "__main__":
    sys.exit(main())
