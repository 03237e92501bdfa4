"""Tasks that a model or its tokenizer cannot answer as asked are refused before weights load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tasks import settings

from larosa.cli.command import read_settings
from larosa.evaluation.tasks.scores import ZeroShotError
from larosa.evaluation.tasks.zero_shot import zero_shot
from larosa.experiment.plan_runs import plan_runs
from larosa.experiment.session import Documents, open_session


def test_a_template_that_is_not_there_is_refused_before_anything_is_scored(model: Any, tokenizer: Any) -> None:
    config = settings("hendrycks_math500", "piqa").model_copy(update={"chat_template": True})
    with pytest.raises(ZeroShotError, match="tokenizer has no chat template: set it to false"):
        zero_shot(model, tokenizer, config, 0)


def test_a_bench_without_a_template_loads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("larosa.models.load_model", lambda *_: pytest.fail("weights were loaded"))
    config = read_settings(
        [
            "model=tiny-llama",
            "evaluation.zero_shot.tasks=[hendrycks_math500]",
            "evaluation.zero_shot.chat_template=true",
        ]
    )
    documents = Documents(["words"], {}, {}, {})
    with pytest.raises(ZeroShotError, match="chat template"):
        open_session(config, documents)


@pytest.mark.parametrize(("tasks", "asked", "length"), [
    ("[hendrycks_math500]", "2048", 2048),
    ("[gsm8k_cot]", "4096", 4096),
    ("[gsm8k_cot]", "null", 256),
])  # fmt: skip
def test_no_room_for_the_question_is_refused_before_weights_load(tasks: str, asked: str, length: int) -> None:
    words = ["model=tiny-llama", f"evaluation.zero_shot.tasks={tasks}", f"evaluation.zero_shot.max_new_tokens={asked}"]
    if asked == "null":
        words += ["model.shape.max_position_embeddings=256", "calibration.length=64", "evaluation.perplexity.length=64"]
    with pytest.raises(ZeroShotError, match=f"generates up to {length} tokens.*max_new_tokens well below"):
        plan_runs(read_settings(words))
