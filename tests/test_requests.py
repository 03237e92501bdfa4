"""Recorded requests: scored with torch alone they give lm-eval's own likelihoods and scores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import evaluate
from tasks import settings
from transformers import ByT5Tokenizer

from conftest import ROOT
from larosa.cli.command import read_settings
from larosa.cli.requests import write_requests
from larosa.config.run import ZeroShotConfig
from larosa.evaluation.tasks import harness, likelihood
from larosa.evaluation.tasks.likelihood import likelihoods
from larosa.evaluation.tasks.recording import record
from larosa.evaluation.tasks.requests import Requests
from larosa.evaluation.tasks.scores import ZeroShotError, draw
from larosa.evaluation.tasks.wrapper import wrap
from larosa.evaluation.tasks.zero_shot import check_tasks, zero_shot
from larosa.experiment.results import identity

TASKS = ("piqa", "winogrande", "hellaswag", "arc_easy")


def recorded(model: Any, tokenizer: Any, path: Path, config: ZeroShotConfig, seed: int = 0) -> ZeroShotConfig:
    record(config, tokenizer, model.config, seed, None, ()).write(path)
    return config.model_copy(update={"requests": str(path)})


def lm_eval_likelihoods(model: Any, tokenizer: Any, config: ZeroShotConfig) -> dict[str, list[tuple[float, bool]]]:
    """All answers of lm-eval's own wrapper, by task, in the order of documents and choices."""
    drawn = harness.prepare(config, 0, ())
    report = evaluate(
        wrap(model, tokenizer, config.batch_size),
        {"tasks": {name: own.parts[name] for name, own in drawn.items()}},
        samples={name: own.rows for name, own in drawn.items()},
        bootstrap_iters=0,
    )
    return {name: [tuple(a) for s in report["samples"][name] for a in s["filtered_resps"]] for name in drawn}


@pytest.mark.parametrize(("batch", "rows"), [(1, 512), (5, 512), (5, 7)])
def test_scores_and_likelihoods_are_lm_evals(
    model: Any, tokenizer: Any, wheel: Any, tmp_path: Path, batch: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "_ROWS", rows)
    config = settings(*TASKS, examples=12, batch=batch)
    own = recorded(model, tokenizer, tmp_path / "tasks.json.gz", config)
    assert zero_shot(model, tokenizer, own, 0) == zero_shot(model, tokenizer, config, 0)
    expected = lm_eval_likelihoods(model, tokenizer, config)
    tasks = Requests.model_validate_json(record(config, tokenizer, model.config, 0, None, ()).model_dump_json()).tasks
    for name, task in tasks.items():
        flat = [(task.contexts[index], continuation) for choices in task.requests for index, continuation in choices]
        found = likelihoods(model, flat, batch)
        for (ours, greedy), (theirs, same), (_, continuation) in zip(found, expected[name], flat, strict=True):
            assert greedy == same
            # Each of a continuation's log-probabilities is rounded; batches of another width sum in another order.
            assert ours == pytest.approx(theirs, abs=len(continuation) * 64 * torch.finfo(torch.float32).eps * 10)


def test_a_long_context_loses_its_beginning_as_in_lm_eval(
    model: Any, tokenizer: Any, wheel: Any, tmp_path: Path
) -> None:
    model.config.max_position_embeddings = 60
    config = settings("piqa", "winogrande")
    own = recorded(model, tokenizer, tmp_path / "tasks.json.gz", config)
    assert zero_shot(model, tokenizer, own, 0) == zero_shot(model, tokenizer, config, 0)
    task = record(config, tokenizer, model.config, 0, None, ()).tasks["piqa"]
    lengths = [len(task.contexts[i]) + len(asked) for choices in task.requests for i, asked in choices]
    assert max(lengths) == 61


def test_the_likeliest_token_decides_a_loglikelihood_task(model: Any) -> None:
    context = (5, 6, 7)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context])).logits[0, -1].log_softmax(-1)
    best, worst = int(logits.argmax()), int(logits.argmin())
    found = likelihoods(model, [(context, (worst,)), (context, (best,)), ((9, *context), (best,))], 2)
    assert [greedy for _, greedy in found[:2]] == [False, True]
    assert [nats for nats, _ in found[:2]] == pytest.approx([float(logits[worst]), float(logits[best])], rel=1e-5)


def test_requests_of_other_settings_are_refused(model: Any, tokenizer: Any, wheel: Any, tmp_path: Path) -> None:
    path = tmp_path / "tasks.json.gz"
    own = recorded(model, tokenizer, path, settings("piqa", examples=4))
    zero_shot(model, tokenizer, own, 0)
    changed = {"tasks": ("piqa", "hellaswag"), "examples": 5, "source": "hub"}
    for key, value in changed.items():
        with pytest.raises(ZeroShotError, match="recorded for other settings") as caught:
            check_tasks(own.model_copy(update={key: value}), 0)
        assert {"tasks": "lacks hellaswag", "examples": "is 4, the run's 5"}.get(key, "hub") in str(caught.value)
    with pytest.raises(ZeroShotError, match="seed is 0, the run's 1"):
        check_tasks(own, 1)
    with pytest.raises(ZeroShotError, match="another tokenizer"):
        zero_shot(model, ByT5Tokenizer(), own, 0)
    model.config.max_position_embeddings = 64
    with pytest.raises(ZeroShotError, match="reads 512 tokens, this one reads 64"):
        zero_shot(model, tokenizer, own, 0)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    own = settings("piqa").model_copy(update={"requests": str(tmp_path / "none.gz")})
    with pytest.raises(ZeroShotError, match=r"python -m larosa\.cli\.requests"):
        check_tasks(own, 0)
    (tmp_path / "none.gz").write_bytes(b"no gzip")
    with pytest.raises(ZeroShotError, match="cannot be read as gzipped requests"):
        check_tasks(own, 0)


def test_equal_requests_are_equal_bytes(model: Any, tokenizer: Any, wheel: Any, tmp_path: Path) -> None:
    config = settings("piqa", "arc_easy", examples=6)
    for name in ("a.gz", "b.gz"):
        recorded(model, tokenizer, tmp_path / name, config, seed=3)
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_where_requests_lie_does_not_shape_the_identity_but_what_they_are_does(tmp_path: Path) -> None:
    def of(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        more = ["evaluation.zero_shot.tasks=[piqa]", f"evaluation.zero_shot.requests={tmp_path / name}"]
        return str(identity(read_settings(["model=tiny-llama", *more]), {"weights": "x"}, "cpu"))

    assert of("a.gz", "one") == of("b.gz", "one") != of("a.gz", "two")


def test_the_command_records_what_a_run_asks_for(wheel: Any, tmp_path: Path) -> None:
    config = read_settings(["model=tiny-llama", "evaluation.zero_shot.tasks=[piqa,winogrande]"])
    path = write_requests(config, tmp_path / "deep" / "tasks.json.gz")
    own = config.evaluation.zero_shot.model_copy(update={"requests": str(path)})
    check_tasks(own, config.seed)
    with pytest.raises(ZeroShotError, match="seed"):
        check_tasks(own, config.seed + 1)


def test_the_command_refuses_a_template_that_is_not_there(wheel: Any, tmp_path: Path) -> None:
    words = ["model=tiny-llama", "evaluation.zero_shot.tasks=[piqa]", "evaluation.zero_shot.chat_template=true"]
    with pytest.raises(ZeroShotError, match="no chat template"):
        write_requests(read_settings(words), tmp_path / "tasks.json.gz")


WITHOUT = """
import json, sys
sys.modules |= dict.fromkeys(["lm_eval", "datasets", "sklearn", "evaluate"])  # importing None fails
import larosa.experiment.pipeline, larosa.cli.compare
from larosa import models
from larosa.cli.command import read_settings
from larosa.evaluation.tasks.zero_shot import zero_shot
config = read_settings(sys.argv[1:])
model, tokenizer = models.load_model(config.model, 0), models.load_tokenizer(config.model)
scores = zero_shot(model, tokenizer, config.evaluation.zero_shot, config.seed)
print(json.dumps([scores["piqa"].correct, scores["piqa"].document_ids]))
"""


def test_scoring_needs_no_lm_eval(wheel: Any, tmp_path: Path) -> None:
    overrides = ["model=tiny-llama", "evaluation.zero_shot.tasks=[piqa]", "evaluation.zero_shot.examples=6"]
    path = write_requests(read_settings(overrides), tmp_path / "tasks.json.gz")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *overrides, f"evaluation.zero_shot.requests={path}"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    correct, documents = json.loads(done.stdout.splitlines()[-1])
    assert len(correct) == 6
    assert documents == draw("piqa", 24, 6, 0)
