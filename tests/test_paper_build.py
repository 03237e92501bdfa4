"""larosa_analysis.build as a whole: figures from every kind of record, one page to read offline, the same twice."""

from __future__ import annotations

import html.parser
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from IPython.utils.capture import capture_output
from made_records import diagnostics, made, sealed, seven, timings, write
from nbclient import NotebookClient

from conftest import ROOT
from larosa_analysis import build
from larosa_analysis.figures import every, lengths, thresholds
from larosa_analysis.records import store
from larosa_analysis.report.main_result import results

NOTEBOOKS = ROOT / "analysis" / "notebooks"


def folders(tmp_path: Path, lengths: tuple[int, ...] = (32, 128)) -> list[str]:
    """Made-up records of everything, as words of the command."""
    runs = [made(m, v, model="smollm2-135m", nats=n, tasks=seven(0.5)) for m, v, n in _RUNS]
    write(tmp_path / "records", runs, diagnostics())
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "decode-made-up.json").write_text(sealed(timings(lengths)))
    return ["--records", str(tmp_path / "records"), "--speed", str(tmp_path / "speed")]


_RUNS = (("dense", 0.0, 1.8), ("magnitude", 0.5, 2.1), ("teal", 0.5, 2.0), ("larosa", 0.5, 1.9))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_builds_are_the_same_bytes(tmp_path: Path) -> None:
    words = folders(tmp_path)
    assert build.main([*words, "--out", str(tmp_path / "one")]) == 0
    command = [sys.executable, "-m", "larosa_analysis.build", *words, "--out", str(tmp_path / "two")]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)  # another process: other hashes
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert one == two
    expected = {f"tables/table{n:02d}.{ending}" for n in range(1, 20) for ending in ("md", "tex", "csv")}
    expected |= {f"figures/figure{n}.{ending}" for n in range(1, 6) for ending in ("png", "pdf")}
    expected |= {f"figures/main-smollm2-135m.{ending}" for ending in ("png", "pdf")}
    assert set(one) == expected | {"report.html"}
    assert all(b"CreationDate" not in found for name, found in one.items() if name.endswith(".pdf"))
    _check_page(one["report.html"].decode())


class _Page(html.parser.HTMLParser):
    """Open elements, ids, links and sources of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {found["id"] or ""} if "id" in found else set()
        self.targets += [found[key] or "" for key in ("href", "src") if key in found]
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _check_page(text: str) -> None:
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert {f"table{n:02d}" for n in range(1, 20)} | {f"figure{n}" for n in range(1, 6)} <= page.ids
    outside = [target for target in page.targets if not target.startswith(("#", "data:image/png;base64,"))]
    assert outside == ["https://arxiv.org/abs/2507.01299"]
    assert {target[1:] for target in page.targets if target.startswith("#")} <= page.ids
    assert "<script" not in text
    assert "--config-name table02 -m model=llama3-8b" in text


def test_what_has_no_record_says_what_makes_it(tmp_path: Path) -> None:
    words = folders(tmp_path, lengths=(32,))
    for path in (tmp_path / "records").glob("inspect-*.json"):
        path.unlink()
    found = store.read(Path(words[1]), Path(words[3]))
    drawn = {own.name: own for own in every.build(found)}
    assert [name for name, own in drawn.items() if own.figure is None] == ["figure1", "figure4", "figure5"]
    assert "--config-name figure4 -m model=llama2-7b" in drawn["figure4"].missing
    assert "larosa.cli.diagnose error_curve model=smollm2-135m" in drawn["figure5"].missing
    assert "larosa.cli.diagnose thresholds" in drawn["figure3"].missing
    assert "d: `python run.py --config-dir sweeps --config-name figure3 -m conditions=smollm2-135m " in (
        drawn["figure3"].missing
    )
    empty = store.read(tmp_path / "nothing", tmp_path / "nothing")
    assert [own.name for own in every.build(empty) if own.figure is not None] == ["figure2"]
    assert (
        build.main(["--records", str(tmp_path / "no"), "--speed", str(tmp_path / "no"), "--out", str(tmp_path / "o")])
        == 0
    )


def test_a_line_over_lengths_is_one_process(tmp_path: Path) -> None:
    fewer, older = timings((32, 128)), timings((32, 64, 128))
    newest = timings((32, 64, 128)) | {"date": "2999-01-01T00:00:00+00:00"}
    found = lengths.timed(store.RecordStore([], [], [older, newest, fewer]))
    assert found
    for own in found.values():
        assert [cell.new_tokens for cell in own] == [32, 64, 128]
        assert {id(cell.record) for cell in own} == {id(newest)}


def test_limits_behind_adapters_are_no_line_of_figure_3() -> None:
    """The committed timings hold both: what an adapter costs is not what limits do."""
    found = lengths.timed(store.read(build.RECORDS, build.TIMINGS), "thresholds")
    assert {cell.record["overhead"] for own in found.values() for cell in own} == {"none"}


def test_limits_behind_a_rotation_are_called_so(tmp_path: Path) -> None:
    run = made("larosa", model="smollm2-135m")
    run["config"]["method"]["selector"] = "threshold"
    write(tmp_path, [made("dense", 0.0, model="smollm2-135m"), run])
    figure = thresholds.drawn(store.read(tmp_path, tmp_path / "none"), "smollm2-135m", "figure3").figure
    assert figure is not None
    named = [text.get_text() for axes in figure.axes if (own := axes.get_legend()) for text in own.get_texts()]
    assert "larosa/paper, thresholds" in named


def test_two_models_get_two_figures(tmp_path: Path) -> None:
    words = folders(tmp_path)
    other = {f"b-{name}".replace("b-inspect", "inspect-b"): r for name, r in diagnostics("llama3-8b").items()}
    write(tmp_path / "records", [made("dense", 0.0)], diagnostics() | other)
    names = [own.name for own in every.build(store.read(Path(words[1]), Path(words[3])))]
    assert "figure1-llama3-8b" in names
    assert "figure5-smollm2-135m" in names


def test_the_main_result_is_the_method_tables(tmp_path: Path) -> None:
    shutil.copy(build.RECORDS / "methods-smollm2.jsonl", tmp_path)
    (block,) = (result.block for result in results(store.read(tmp_path, tmp_path)))
    page = (ROOT / "docs" / "results.md").read_text()
    for row in block.rows:
        name = row[0].text.partition(" (")[0]
        lines = [line for line in page.splitlines() if line.startswith(f"| {name} ")]
        assert any(all(cell.shown in line for cell in row[3:]) for line in lines), name


def test_the_tables_of_pages_are_filled_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme, docs = tmp_path / "README.md", tmp_path / "docs"
    words = [*folders(tmp_path), "--readme", str(readme), "--docs", str(docs)]
    docs.mkdir()
    readme.write_text("a\n<!-- table: table05 -->\n<!-- end table: table05 -->\nb\n")
    (docs / "other.md").write_text("<!-- table: speed-full -->\n<!-- end table: speed-full -->\n")
    assert build.main([*words, "--check"]) == 1
    assert build.main(words) == 0
    assert build.main([*words, "--check"]) == 0
    assert "| 50 | teal |" in readme.read_text()
    assert "| llama2-7b, no overhead, Top-K |" in (docs / "other.md").read_text()
    capsys.readouterr()
    (docs / "other.md").write_text((docs / "other.md").read_text().replace("1.50x", "1.51x"))
    assert build.main([*words, "--check"]) == 1
    said = capsys.readouterr().out
    assert "README.md: its tables are what" in said
    assert "other.md: its tables are not what" in said
    readme.write_text("<!-- table: other -->\n")
    assert build.main([*words, "--check"]) == 2
    assert "asks for a table 'other'" in capsys.readouterr().err
    readme.write_text("<!-- table: table05 -->\n")
    assert build.main([*words, "--check"]) == 2
    assert "README.md needs one line `<!-- table: table05 -->`" in capsys.readouterr().err


def test_the_readmes_figures_are_drawn_from_the_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, words = tmp_path / "README.md", [*folders(tmp_path), "--readme", str(tmp_path / "README.md")]
    own.write_text("![a](analysis/images/figure5.png)\n![b](analysis/images/main-smollm2-135m.png)\n")
    assert build.main([*words, "--check"]) == 1
    assert "figure5.png, which it shows, is not there" in capsys.readouterr().out
    assert build.main([*words, "--out", str(tmp_path / "out")]) == 0
    for name in ("figure5", "main-smollm2-135m"):
        drawn = (tmp_path / "analysis" / "images" / f"{name}.png").read_bytes()
        assert drawn == (tmp_path / "out" / "figures" / f"{name}.png").read_bytes()
    assert build.main([*words, "--check"]) == 0
    own.write_text("![a](analysis/images/figure9.png)\n")
    assert build.main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "README.md shows figure9.png; the records give figure1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tables", "figures"])
def test_notebooks_run_and_are_committed_without_outputs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has imported what they import."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    monkeypatch.chdir(ROOT)
    shell, kinds = InteractiveShell.instance(), set()
    select_figure_formats(shell, {"png"})
    try:
        for cell in code:
            with capture_output() as captured:
                done = shell.run_cell(cell.source)
            done.raise_error()
            kinds |= {kind for out in captured.outputs for kind in out.data or {}}
    finally:
        InteractiveShell.clear_instance()
    assert ("image/png" if name == "figures" else "text/markdown") in kinds


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tables", "figures"])
def test_notebooks_run_in_a_kernel(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT)}}).execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
