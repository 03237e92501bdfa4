"""Tables of a model that the paper has not: which texts, schedules and coefficients its rows share."""

from __future__ import annotations

from pathlib import Path

from made_records import Record, made
from test_paper_tables import block, rows_of, tables

SMALL = "smollm2-135m"
UNSEEN = ("gsm8k", "lambada")


def searched(a1: float, a3: float, nats: float, texts: tuple[str, ...] = ("boolq-heldout",)) -> Record:
    """A cell of a grid of coefficients."""
    run = made("larosa", model=SMALL, texts=texts, nats=nats)
    coefficients = {"h1": a1, "h2": None, "h3": a3, "h4": None}
    run["config"]["schedule"] |= {"kind": "coefficients", "name": "constrained", "coefficients": coefficients}
    return run | {"identity": f"{a1} {a3} {texts}"}


def scheduled(method: str, name: str, nats: float, level: float = 0.5) -> Record:
    run = made(method, level, model=SMALL, texts=UNSEEN, nats=nats)
    given = {"h1": 0.8, "h2": 1.2, "h3": 0.8, "h4": 1.2}
    run["config"]["schedule"] |= {"kind": "coefficients", "name": name, "coefficients": given}
    return run | {"identity": f"{method} {name} {level}"}


def dense() -> Record:
    return made("dense", 0.0, model=SMALL, texts=(*UNSEEN, "boolq-heldout"), nats=1.8)


GRID = [(0.7, 0.8, 1.7), (0.8, 0.8, 1.6), (0.9, 0.8, 1.5), (0.9, 0.9, 1.65), (1.0, 0.8, 1.9)]


def test_a_text_of_a_search_alone_stands_in_no_other_table(tmp_path: Path) -> None:
    others = [scheduled(method, "official", 2.0) for method in ("larosa", "magnitude", "teal")]
    both = searched(0.8, 0.8, 2.4, UNSEEN)
    found = tables(tmp_path, [dense(), *others, both, *(searched(*cell) for cell in GRID)])
    table = block(found[2], SMALL)
    assert "boolq-heldout perplexity" not in table.columns
    shown = [own for own in rows_of(table) if own["method"].text == "larosa/paper"]
    assert [own["schedule"].text for own in shown if own["sparsity, %"].text == "50"] == ["official"]


def test_the_best_of_a_search_is_the_best_on_the_text_of_the_search(tmp_path: Path) -> None:
    grid = [searched(*cell) for cell in GRID]
    found = tables(tmp_path, [dense(), *grid, searched(0.8, 0.8, 2.4, UNSEEN), searched(0.9, 0.8, 2.6, UNSEEN)])
    line = next(own for own in rows_of(found[11].blocks[0]) if own["model"].text == SMALL)
    assert [line[f"alpha{i}, ours"].shown for i in (1, 3)] == ["0.90", "0.80"]
    assert line["settings tried"].text == str(len(GRID))
    assert "gsm8k" not in found[11].blocks[0].caption


def test_table_10_has_the_printed_pairs_of_a_grid(tmp_path: Path) -> None:
    runs = [searched(a1, a3, nats, UNSEEN) for a1, a3, nats in GRID]
    off = scheduled("magnitude", "official", 2.0)  # 0.8 and 0.8, but 1.2 and 1.2 against the constraints
    found = block(tables(tmp_path, [dense(), *runs, off])[10], SMALL)
    pairs = [(own["alpha1"].text, own["alpha3"].text) for own in rows_of(found)]
    assert sorted(pairs) == [("0.80", "0.80"), ("0.90", "0.90")]


def test_rows_of_table_6_share_their_schedule(tmp_path: Path) -> None:
    runs = [scheduled("larosa", "official", 2.2), scheduled("magnitude", "official", 2.1)]
    better = scheduled("magnitude", "mine", 1.9)  # which the rotated model lacks
    limits = scheduled("larosa", "official", 1.8) | {"label": "larosa/paper (limits)", "identity": "limits"}
    limits["config"]["method"]["selector"] = "threshold"
    found = block(tables(tmp_path, [dense(), *runs, better, limits])[6], SMALL)
    own = [(row["rotation"].text, row["schedule"].text) for row in rows_of(found) if row["sparsity, %"].text == "50"]
    assert sorted(own) == [("layer", "official"), ("model", ""), ("none", "official"), ("sublayer", "")]


def test_tables_of_calibration_sets_leave_out_what_was_calibrated_on_one(tmp_path: Path) -> None:
    other, single = scheduled("larosa", "official", 2.2), scheduled("teal", "official", 2.1)
    other |= {"identity": "on lambada"}
    other["data"]["calibration"]["text"] = "lambada"
    runs = [dense(), scheduled("larosa", "official", 2.3), single]

    def shown(name: str, records: list[Record]) -> set[str]:
        return {own["method"].text for own in rows_of(block(tables(tmp_path / name, records)[7], SMALL))}

    assert shown("two sets", [*runs, other]) == {"dense", "larosa/paper"}
    assert shown("one set", runs) == {"dense", "larosa/paper", "teal"}
