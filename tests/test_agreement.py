"""Scores of the dense model against lm-eval run plainly from its own command line, which loads the model itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from larosa import models
from larosa.cli.command import read_settings
from larosa.evaluation.tasks import harness
from larosa.evaluation.tasks.zero_shot import zero_shot

TASKS, EXAMPLES = ("piqa", "arc_easy"), 20


@pytest.mark.slow
def test_dense_scores_are_those_of_lm_evals_command(tmp_path: Path) -> None:
    config = read_settings(
        ["model=smollm2-135m", f"evaluation.zero_shot.tasks=[{','.join(TASKS)}]",
         f"evaluation.zero_shot.examples={EXAMPLES}", "evaluation.zero_shot.batch_size=4"]
    )  # fmt: skip
    model, tokenizer = models.load_model(config.model, config.seed), models.load_tokenizer(config.model)
    ours = zero_shot(model, tokenizer, config.evaluation.zero_shot, config.seed)
    definitions = [harness.definition(task, "wheel", tmp_path) for task in TASKS]
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu", "--batch_size", "4",
        "--model_args", f"pretrained={models.ensure_available(config.model)},dtype=float32",
        "--tasks", *definitions, "--num_fewshot", "0", "--log_samples", "--output_path", str(tmp_path / "out"),
        "--samples", json.dumps({task: score.document_ids for task, score in ours.items()}),
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, **offline})
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(next((tmp_path / "out").rglob("results_*.json")).read_text())["results"]
    for task, score in ours.items():
        assert score.examples == EXAMPLES
        lines = next((tmp_path / "out").rglob(f"samples_{task}_*.jsonl")).read_text().splitlines()
        theirs = {sample["doc_id"]: float(sample[score.metric]) for sample in map(json.loads, lines)}
        assert [theirs[row] for row in score.document_ids] == score.correct
        assert results[task][f"{score.metric},none"] == pytest.approx(score.value)
        print(task, score.metric, score.value, results[task][f"{score.metric},none"])
