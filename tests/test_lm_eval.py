"""`python -m larosa.cli.lm_eval`: lm-eval's own command line on a model that larosa made sparse."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from lm_eval._cli.utils import key_val_to_dict
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager
from test_pipeline import WORDS, write_text
from transformers import PreTrainedModel

from conftest import ROOT
from larosa.cli import lm_eval
from larosa.config.run import ConfigError
from larosa.errors import ParityError


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path / "cache"))
    return {
        "pretrained": "tiny-llama",
        "method": "larosa/paper",
        "sparsity": "0.4",
        "calibration": "text",
        "calibration.text.files": f"[{write_text(tmp_path / 'calibration.txt', 0)}]",
        "calibration.sequences": "4",
        "calibration.length": "64",
        "calibration.probe_sequences": "2",
    }


def test_the_registered_model_is_sparse(arguments: dict[str, str]) -> None:
    assert get_model("larosa") is lm_eval.SparseLM
    sparse = lm_eval.SparseLM(**arguments, batch_size=2)
    dense = lm_eval.SparseLM(**{**arguments, "method": "dense"})
    ids = torch.arange(2, 34)[None]
    assert sparse.handle.plan.method.preset == "larosa/paper"
    with sparse.handle.level_zero():
        near = sparse._model_call(ids)
    assert torch.allclose(near.float(), dense._model_call(ids).float(), atol=1e-3)
    assert not torch.allclose(sparse._model_call(ids).float(), dense._model_call(ids).float(), atol=1e-3)


def test_settings_that_run_py_refuses_are_refused(arguments: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="parallelize"):
        lm_eval.settings_of(**arguments, parallelize=True)
    with pytest.raises(ConfigError, match="pretrained=NAME"):
        lm_eval.settings_of(**arguments, model="tiny-llama")
    with pytest.raises(ConfigError, match="gpt5"):
        lm_eval.settings_of("gpt5", calibration="text")
    with pytest.raises(ConfigError, match="calibration=NAME"):
        lm_eval.settings_of("tiny-llama")


@pytest.mark.parametrize("name", ["a b.txt", "a=b.txt", "a[1].txt", "é #&.txt"])
def test_paths_of_every_kind_arrive(name: str, arguments: dict[str, str], tmp_path: Path) -> None:
    """As lm-eval's own parser of `--model_args` hands them over."""
    typed = (
        f"pretrained=tiny-llama,calibration=text,calibration.text.files={tmp_path / name},model.path={tmp_path / name}"
    )
    config = lm_eval.settings_of(**key_val_to_dict(typed))
    assert config.calibration.text.files == (str(tmp_path / name),)
    assert config.model.path == str(tmp_path / name)


def test_values_that_lm_eval_has_read_already_keep_their_meaning(arguments: dict[str, str]) -> None:
    typed = "pretrained=llama2-7b,calibration=text,calibration.text.files=[a.txt,b.txt],model.revision=1234567"
    typed += ",model.device_map=None,force=true,sparsity=0.3,evaluation.perplexity.max_tokens=None"
    config = lm_eval.settings_of(**key_val_to_dict(typed))
    assert config.calibration.text.files == ("a.txt", "b.txt")
    assert (config.model.revision, config.model.device_map, config.force, config.sparsity) == (
        "1234567",
        None,
        True,
        0.3,
    )
    assert config.evaluation.perplexity.max_tokens is None


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("dtype=bfloat16", "dtype: unknown key; did you mean model.dtype?"),
        ("method.bases=pca", "did you mean method.basis"),
        ("method=larosa/papr", "did you mean larosa/paper"),
        ("sparcity=0.3", "did you mean sparsity"),
    ],
)
def test_a_misspelt_argument_is_answered_with_the_real_name(typed: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        lm_eval.settings_of(**key_val_to_dict(f"pretrained=tiny-llama,calibration=c4,{typed}"))
    assert "+" not in str(refused.value)


def test_a_model_that_is_not_named_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="pretrained=NAME is needed"):
        lm_eval.SparseLM(**key_val_to_dict("sparsity=0.4"))
    with pytest.raises(ConfigError, match=r"model\.path='~/models/x'"):
        lm_eval.settings_of(**key_val_to_dict("pretrained=~/models/x,calibration=c4"))


@pytest.mark.parametrize(
    ("more", "batch_size", "message"),
    [({"token_policy": "decode_only"}, 1, "dense model"), ({"token_policy": "last_fraction"}, 8, "--batch_size 1")],
)
def test_what_would_not_score_the_sparse_model_is_refused(
    arguments: dict[str, str], more: dict[str, str], batch_size: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        lm_eval.SparseLM(**arguments, **more, batch_size=batch_size)


TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["{{{{yes}}}}", "{{{{no}}}}"]
doc_to_target: 0
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def words(arguments: dict[str, str], tmp_path: Path) -> list[str]:
    """A command line with a task of one's own."""
    data = tmp_path / "questions.json"
    lines = [{"question": " ".join(WORDS[i : i + 5]), "yes": WORDS[i + 5], "no": "zebra"} for i in range(4)]
    data.write_text("\n".join(map(json.dumps, lines)))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "own.yaml").write_text(TASK.format(name="own_questions", data=data))
    found = ["--model", "larosa", "--model_args", ",".join(f"{k}={v}" for k, v in arguments.items())]
    found += ["--tasks", "own_questions", "--include_path", str(tasks), "--output_path", str(tmp_path / "out")]
    return [*found, "--log_samples"]


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's command line in this process, with tasks of one's own alone."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    monkeypatch.setattr("lm_eval.__main__.setup_logging", lambda: None)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # lm-eval sets it


def check_results(folder: Path, printed: str) -> None:
    assert "own_questions" in printed
    found = json.loads(next(folder.rglob("results_*.json")).read_text())
    assert 0 <= found["results"]["own_questions"]["acc,none"] <= 1
    assert found["n-samples"]["own_questions"]["effective"] == 4


def test_the_command_line_is_lm_evals(
    inside: None, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the start of Python and lm-eval's reading of its own 10,000 task files, which take half a minute."""
    monkeypatch.setattr(sys, "argv", ["larosa.cli.lm_eval", *words])
    lm_eval.main()
    check_results(tmp_path / "out", capsys.readouterr().out)


def refused(words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["larosa.cli.lm_eval", *words])
    with pytest.raises(SystemExit) as ended:
        lm_eval.main()
    assert ended.value.code == 2
    assert message in caplog.text


def test_a_task_that_there_is_not_ends_in_one_message(
    inside: None, words: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words[words.index("own_questions")] = "nonsense"
    refused(words, "Tasks not found: nonsense (`python -m larosa.cli.lm_eval ls tasks`", monkeypatch, caplog)


def test_a_model_with_nan_scores_nothing(
    inside: None, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load = lm_eval.open_session.__globals__["models"].load_model

    def broken(*given: object) -> PreTrainedModel:
        model = load(*given)
        model.model.layers[1].mlp.down_proj.weight.data[3, 5] = float("nan")
        return model

    monkeypatch.setattr("larosa.models.load_model", broken)
    refused(words, "its weight model.layers.1.mlp.down_proj.weight does too", monkeypatch, caplog)
    assert not list((tmp_path / "out").rglob("results_*.json"))


def test_nan_that_only_a_task_meets_scores_nothing(
    inside: None, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prepare = lm_eval.prepare

    def broken(cell: object, session: object) -> object:
        found = prepare(cell, session)
        session.model.model.embed_tokens.weight.data[:] = float("nan")  # behind the check at level 0
        return found

    monkeypatch.setattr(lm_eval, "prepare", broken)
    refused(words, "a batch of lm-eval's requests: the model's logits hold NaN or infinity", monkeypatch, caplog)
    assert not list((tmp_path / "out").rglob("results_*.json"))


def test_a_transformation_that_is_wrong_scores_nothing(
    arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from larosa.evaluation import parity

    monkeypatch.setattr(parity, "bound", lambda *_: 0.0)
    with pytest.raises(ParityError, match="at level 0"):
        lm_eval.SparseLM(**arguments)


def test_a_task_about_the_calibration_text_is_refused(
    inside: None, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text = (tmp_path / "calibration.txt").read_text().split()
    lines = [{"question": " ".join(text[i : i + 30]), "yes": text[i + 30], "no": "zebra"} for i in range(0, 120, 30)]
    (tmp_path / "questions.json").write_text("\n".join(map(json.dumps, lines)))
    refused(words, "task own_questions is not held out from the calibration text", monkeypatch, caplog)


@pytest.mark.slow
def test_the_command_line_finds_lm_evals_tasks_too(words: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "larosa.cli.lm_eval", *words], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    check_results(tmp_path / "out", done.stdout)


def test_tf32_is_refused_and_not_ignored() -> None:
    with pytest.raises(ConfigError, match="float32_matmul=tf32 is for `larosa run`"):
        lm_eval.settings_of("tiny-llama", None, **{"evaluation.float32_matmul": "tf32", "calibration": "wikitext2"})
