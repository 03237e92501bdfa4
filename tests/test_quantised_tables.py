"""Records on rounded weights fill Table 9, named by what is rounded, and stand in no other table."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from made_records import Record, made, sealed, seven, write
from test_failed import cell, fail, gathered
from test_paper_tables import block, rows_of, tables

from conftest import CONF
from larosa.errors import LarosaError
from larosa.records import quantization_label
from larosa_analysis.comparison import methods
from larosa_analysis.records import store
from larosa_analysis.records.entry import Entry, RecordsError, load
from larosa_analysis.report.main_result import results
from larosa_analysis.tables import quantised
from larosa_analysis.tables.cells import Block, Cell

CHOICES = ("none", "w8", "w4_rtn", "w4_rtn_in", "w4_gptq", "w4_awq", "w8_gptq", "w4_gptq_out")
NAMES = ("none", "w8", "w4 rtn along outputs", "w4 rtn", "w4 gptq", "w4 awq", "w8 gptq", "w4 gptq along outputs")
COLUMN = "WikiText-2 perplexity, ours"


def on_grid(choice: str, method: str, level: float = 0.5, **more: Any) -> Record:
    """A made-up run of a choice of conf/quantization."""
    run = made(method, level, **more)
    run["config"]["quantization"] = yaml.safe_load((CONF / "quantization" / f"{choice}.yaml").read_text())
    if choice != "none":
        stored = {"projection_bytes": 100, "overhead_bytes": 25, "read_fraction_of_16_bit": 0.1875}
        run["metrics"]["accounting"]["quantised"] = stored
    return run | {"identity": f"{run['identity']} {choice}"}


def every_choice(**more: Any) -> list[Record]:
    """Perplexity rises with the place of the choice; every method of the sweep."""
    cells = (("dense", 0.0), ("magnitude", 0.25), ("larosa", 0.25), ("larosa", 0.0))
    return [
        on_grid(choice, *own, nats=2.0 + 0.1 * place, **more) for place, choice in enumerate(CHOICES) for own in cells
    ]


def of(found: Block, level: str, quantization: str, method: str) -> dict[str, Cell]:
    wanted = (level, quantization, method)
    held = [
        own for own in rows_of(found) if tuple(own[c].text for c in ("sparsity, %", "quantization", "method")) == wanted
    ]
    assert len(held) == 1
    return held[0]


@pytest.mark.parametrize(("choice", "name"), zip(CHOICES, NAMES, strict=True))
def test_names(choice: str, name: str) -> None:
    record = on_grid(choice, "larosa")
    assert quantization_label.name(record["config"]) == name
    label = Entry.of(record).label
    assert label == ("larosa/paper (absorbed, pca, per layer" + (")" if name == "none" else f", {name})"))
    record["config"]["quantization"] |= {"head": "w8", "adapters": "w8"}
    assert quantization_label.name(record["config"]).removeprefix(f"{name}, ") == "w8 head, w8 adapters"
    del record["config"]["quantization"]
    assert quantization_label.name(record["config"]) == "none"


def test_table_9_of_a_printed_model(tmp_path: Path) -> None:
    table = tables(tmp_path, every_choice(tasks=seven(0.6)))[9]
    found = block(table, "llama3-8b")
    expected = {name: 2.0 + 0.1 * place for place, name in enumerate(NAMES)}
    for quantiser, printed, dense in (("rtn", "8.64", "8.52"), ("gptq", "6.58", "6.54"), ("awq", "6.56", "6.48")):
        for level, method, value in (("25", "larosa", printed), ("0", "dense", dense)):
            own = of(found, level, quantiser, method)
            assert own["WikiText-2 perplexity, printed"].text == value
            noise = of(found, level, "none", method)[COLUMN].value or 0
            assert own[COLUMN].value == pytest.approx(noise * math.e ** (expected[f"w4 {quantiser}"] - 2.0))
            assert own["Acc7, %, ours"].value == pytest.approx(60, abs=5)
    for name in ("w8", "w4 rtn along outputs", "w8 gptq", "w4 gptq along outputs"):  # the paper has neither
        assert of(found, "0", name, "dense")[COLUMN].value is not None
        assert of(found, "25", name, "larosa/paper")[COLUMN].value is not None
    for name in NAMES:
        assert of(found, "25", name, "magnitude")[COLUMN].value is not None  # not turned
        assert of(found, "0", name, "larosa/paper")[COLUMN].value is not None  # turned, nothing dropped
    assert of(found, "50", "omniquant", "larosa")[COLUMN].text == "not ours"
    assert {own.what: own.cells for own in table.missing}["llama3-8b"] == 8  # 50 %: four quantisers, two measures


def test_bytes_are_of_16_bit_weights_and_extras_of_weights_as_stored(tmp_path: Path) -> None:
    runs = [on_grid(choice, "larosa") for choice in ("none", "w4_gptq")]
    for run in runs:
        run["metrics"]["accounting"] |= {"overhead_fraction": 0.05, "read_fraction": 0.55}
    found = block(tables(tmp_path, runs)[9], "llama3-8b")
    shown = {name: of(found, "50", name, "larosa") for name in ("none", "gptq")}
    assert [own["bytes read, % of 16 bits per weight"].shown for own in shown.values()] == ["55.0", "18.8"]
    assert [own["bytes read, %"].shown for own in shown.values()] == ["55.0", "75.0"]


def test_of_a_model_that_the_paper_has_not_every_setting_has_a_row(tmp_path: Path) -> None:
    runs = every_choice(model="smollm2-135m", texts=("lambada",), calibration="boolq-passages")
    for run in runs:
        run["model"]["gguf_sha256"] = next(iter(quantization_label._FORMATS))
    found = block(tables(tmp_path, runs)[9], "smollm2-135m")
    for name in NAMES:
        for level, method in (("0", "dense"), ("0", "larosa/paper"), ("25", "magnitude"), ("25", "larosa/paper")):
            assert of(found, level, name, method)["lambada perplexity"].value is not None
    assert "the source was already quantised, to 4 bits in blocks of 32 (Q4_1)" in found.caption
    assert "w4 in groups of 64" in found.caption
    assert all(name in found.caption for name in NAMES[1:])


def test_what_codes_add_is_paired_by_block_with_the_same_method_and_level(tmp_path: Path) -> None:
    runs = every_choice(model="smollm2-135m", texts=("lambada", "gsm8k"))
    runs[1]["model"]["gguf_sha256"] = next(iter(quantization_label._FORMATS))
    lonely = on_grid(
        "w8", "magnitude", 0.5, model="smollm2-135m", texts=("lambada", "gsm8k")
    )  # nothing plain beside it
    own = runs[-1]["metrics"]["perplexity"]["gsm8k"]["block_nll_nats"]
    own[0] += 1023 * 0.2  # of the last choice on LaRoSA at 0 %, one of 40 blocks: the mean rises by 0.005 nats
    found = block(tables(tmp_path, [*runs, lonely])[9], f"smollm2-135m: {quantised.TITLE}")
    places = [(own["sparsity, %"].text, own["method"].text) for own in rows_of(found)]
    assert places == [("0", "dense"), ("0", "larosa/paper"), ("25", "larosa/paper"), ("25", "magnitude")]
    for line in rows_of(found):
        for place, name in enumerate(NAMES[1:], start=1):
            odd = (line["method"].text, line["sparsity, %"].text, name) == ("larosa/paper", "0", NAMES[-1])
            expected, cell = math.exp(0.1 * place + 0.005 * odd), line[name]
            assert cell.value == pytest.approx(100 * (expected - 1))
            assert cell.error == pytest.approx(100 * expected * 0.005 if odd else 0.0, abs=1e-9)
    assert "gsm8k, lambada together" in found.caption
    assert "the source was already quantised" in found.caption
    short = runs[-1]["metrics"]["perplexity"]
    del short["lambada"], runs[-1]["metrics"]["achieved_sparsity"]["lambada"]
    again = block(tables(tmp_path / "c", runs)[9], f"smollm2-135m: {quantised.TITLE}")
    lost = next(own for own in rows_of(again) if (own["sparsity, %"].text, own["method"].text) == ("0", "larosa/paper"))
    assert lost[NAMES[-1]].value is None  # of the plain run's texts it has one only
    assert lost[NAMES[1]].value is not None
    assert not any(quantised.TITLE in other.title for other in tables(tmp_path / "b", [made("dense", 0.0)])[9].blocks)


def test_no_other_table_or_figure_holds_them(tmp_path: Path) -> None:
    """Quantised runs of more settings than the plain ones, and better ones, change no other table."""
    plain = [made("dense", 0.0), made("larosa"), made("magnitude", nats=2.5)]
    better = [
        on_grid("w4_gptq", method, level, nats=1.5)
        for method, level in (("dense", 0.0), ("larosa", 0.5), ("larosa", 0.25), ("teal", 0.5), ("magnitude", 0.5))
    ]
    alone, beside = tables(tmp_path / "a", plain), tables(tmp_path / "b", [*plain, *better])
    assert {number for number, table in beside.items() if table != alone[number]} == {9}
    only = tables(tmp_path / "c", better)
    assert all(block.folded for number in (1, 2, 5, 6) for block in only[number].blocks)
    both = store.read(tmp_path / "b", tmp_path / "none")
    assert [own.block for own in results(both)] == [own.block for own in results(store.read(tmp_path / "a", tmp_path))]
    assert not results(store.read(tmp_path / "c", tmp_path))


def test_unquantised_runs_of_other_methods_and_schedules_stay_out_of_table_9(tmp_path: Path) -> None:
    runs = every_choice(model="smollm2-135m", texts=("lambada",))
    other, search = (made("larosa", 0.25, model="smollm2-135m", texts=("lambada",), nats=1.9) for _ in range(2))
    other |= {"label": "larosa/paper (absorbed, pca, per model)", "identity": "other"}
    search["config"]["schedule"]["name"] = "searched"
    search |= {"identity": "search"}
    found = [
        block(tables(tmp_path / name, own)[9], "smollm2-135m")
        for name, own in (("a", runs), ("b", [*runs, other, search]))
    ]
    assert rows_of(found[0]) == rows_of(found[1])


def test_the_best_is_sought_among_equally_quantised(tmp_path: Path) -> None:
    runs = [on_grid("none", "dense", 0.0)]
    for choice, worse in (("none", 0.0), ("w4_gptq", 0.3)):
        runs += [on_grid(choice, "larosa", nats=2.0 + worse), on_grid(choice, "magnitude", nats=2.2 + worse)]
    found = rows_of(block(tables(tmp_path, runs)[9], "llama3-8b"))
    assert {own["quantization"].text for own in found if own[COLUMN].best} == {"none", "gptq"}
    assert {own["method"].text for own in found if own[COLUMN].best} == {"larosa"}


def test_the_method_table_refuses_them_beside_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, [made("dense", 0.0), made("magnitude"), on_grid("w8", "larosa")]) / "runs.jsonl"
    with pytest.raises(RecordsError, match="what is quantised: none and w8"):
        load([path])
    assert methods.main([str(path)]) == 2
    assert "what is quantised" in capsys.readouterr().err


def test_a_calibrated_quantiser_ties_the_dense_model_to_the_calibration(tmp_path: Path) -> None:
    runs = [
        on_grid("w4_gptq", "larosa"),
        on_grid("w4_gptq", "dense", 0.0, calibration="c4"),
        on_grid("w4_rtn_in", "dense", 0.0, calibration="c4"),
    ]
    found = block(tables(tmp_path, runs)[9], "llama3-8b")
    assert of(found, "0", "gptq", "dense")[COLUMN].text == "missing"
    assert of(found, "0", "rtn", "dense")[COLUMN].value is not None


def test_quantisers_that_read_more_or_less_do_not_mix(tmp_path: Path) -> None:
    runs = [on_grid("none", "dense", 0.0), *(on_grid("w4_gptq", "larosa", level) for level in (0.25, 0.5, 0.25))]
    runs[-1]["config"]["quantization"]["sequences"] = 16
    runs[-1]["identity"] += "16"
    table = tables(tmp_path, runs)[9]
    assert table.excluded == ["llama3-8b: 1 record: settings of w4 gptq"]
    only = block(tables(tmp_path / "b", runs[-1:])[9], "llama3-8b")
    assert "w4 gptq: calibrated on the first 16 sequences, first tokens count 64 times" in only.caption


def test_failures_stand_in_table_9_alone(tmp_path: Path) -> None:
    for run in [on_grid("none", "dense", 0.0), on_grid("none", "larosa"), on_grid("none", "larosa", 0.25)]:
        path = tmp_path / "runs" / run["identity"] / "result.json"
        path.parent.mkdir(parents=True)
        path.write_text(sealed(run))
    for name in ("w4 gptq", "w8"):
        fail(tmp_path / "runs" / name, LarosaError(f"{name} failed"), asked(name))
    found = gathered(tmp_path)
    ninth = block(found[9], "llama3-8b")
    for quantization, method, name in (("gptq", "larosa", "w4 gptq"), ("w8", "larosa/paper", "w8")):
        own = of(ninth, "50", quantization, method)[COLUMN]
        assert own.text == "failed"
        assert found[9].footnotes[own.notes[0] - 1] == f"{name} failed"
    assert all("failed" not in note for number in (1, 2, 5, 7) for note in found[number].footnotes)


def asked(name: str) -> Record:
    label = "larosa/paper (absorbed, pca, per layer)"
    return cell("larosa/paper", 0.5, label=label, schedule="paper", quantization=name)
