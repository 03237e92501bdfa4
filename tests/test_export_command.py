"""`larosa export` of a run: the run's own sparse model, with a card of what was measured; lm-eval on an export."""

# ruff: noqa: F811  # fixtures

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_pipeline import overrides  # noqa: F401
from transformers import PreTrainedModel

import larosa
from larosa.cli import export, lm_eval
from larosa.cli.command import read_settings
from larosa.config.run import ConfigError
from larosa.experiment.pipeline import run
from larosa.experiment.plan_runs import plan_runs
from larosa.experiment.prepare import prepare
from larosa.experiment.session import open_session, read_documents
from larosa.exports.folder import PLAN


def words_of(overrides: list[str], folder: Path, *more: str) -> list[str]:
    """The overrides of a run, as those of an export."""
    return [word for word in overrides if not word.startswith("output=")] + [f"output={folder}", *more]


def logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize(
    "more",
    [
        ("method=larosa/paper", "quantization=w8"),
        (
            "method=larosa/block_diagonal",
            "method.tuning=null",
            "quantization=w4_gptq_out",
            "export.weights=copy",
            "model=tiny-qwen2",
        ),
        ("method=teal", "model=tiny-mistral", "model.dtype=bfloat16", "seed=3"),
    ],
    ids=str,
)
def test_the_export_is_the_run_s_own_model(
    more: tuple[str, ...],
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [*overrides, *more, "baseline=none"]
    config = read_settings(words)
    planned = list(plan_runs(config).values())[-1]
    session = open_session(config, read_documents(config))
    handle, _ = prepare(planned, session)
    ids = session.calibration.ids[:2]
    expected = logits(session.model, ids)
    handle.remove()
    monkeypatch.setattr(sys, "argv", ["export", *words_of(words, tmp_path / "out")])
    export.main()
    loaded = larosa.load(tmp_path / "out")
    assert torch.equal(logits(loaded, ids), expected)
    assert larosa.load_tokenizer(tmp_path / "out")("some text").input_ids == session.tokenizer("some text").input_ids
    assert (tmp_path / "out" / "dense").exists() == ("export.weights=copy" in more)
    assert "Not measured." in (tmp_path / "out" / "README.md").read_text()


def test_the_card_says_what_the_record_holds(overrides: list[str], tmp_path: Path) -> None:
    words = [*overrides, "method=larosa/paper", "baseline=dense"]
    records = run(read_settings(words), "larosa run")
    folder = export.export(export.settings(words_of(words, tmp_path / "out", f"export.records={tmp_path / 'runs'}")))
    card = (folder / "README.md").read_text()
    dense, own = records.values()
    for record, form in ((own, "| perplexity on text | {:.4g} (dense: "), (dense, "(dense: {:.4g}) |")):
        assert form.format(record["metrics"]["perplexity"]["text"]["perplexity"]) in card
    achieved = own["metrics"]["achieved_sparsity"]["text"]["weight_sparsity_mean"]
    assert f"| weight sparsity, achieved on text | {achieved:.1%} |" in card
    assert f"{own['metrics']['accounting']['overhead_fraction']:.1%}" in card
    assert own["identity"] in card
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["library_name"] == "larosa"
    assert "Not measured" not in card
    exec(card.split("```python\n")[1].split("```")[0].replace('"FOLDER"', repr(str(folder))), {})  # its code loads it
    assert json.loads((folder / PLAN).read_text())["base"]["seed"] == 0


def test_a_folder_is_named_and_free_before_anything_is_calibrated(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(ConfigError, match="output=FOLDER is needed"):
        export.settings([word for word in overrides if not word.startswith("output=")])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    monkeypatch.setattr("larosa.experiment.export.open_session", None)
    monkeypatch.setattr(sys, "argv", ["export", *words_of(overrides, tmp_path / "out", "force=true")])
    with pytest.raises(SystemExit, match="2"):
        export.main()
    assert "no export, so it is not replaced" in caplog.text


def test_runs_refuse_an_export_and_lm_eval_scores_it(
    overrides: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = words_of(overrides, tmp_path / "out", "method=larosa/paper", "export.weights=copy")
    folder = export.export(export.settings(words))
    with pytest.raises(larosa.LarosaError, match=r"is an export of larosa.*larosa\.load.*larosa eval"):
        plan_runs(read_settings([*overrides, f"model.path={folder}"]))
    others = [word for word in words if not word.startswith(("model=", "output=", "export.weights="))]
    with pytest.raises(larosa.LarosaError, match="is an export of larosa"):
        read_settings([*others, "model=local", f"model.path={folder}"])
    local = [*others, "model=local", f"model.path={folder / 'dense'}", f"output={tmp_path / 'local'}"]
    again = larosa.load(export.export(export.settings(local)))
    scored = lm_eval.SparseLM(pretrained=str(folder), device="cpu", batch_size=2)
    ids = torch.arange(2, 34)[None]
    assert torch.equal(scored._model_call(ids), logits(larosa.load(folder), ids))
    assert torch.equal(scored._model_call(ids), logits(again, ids))
    assert scored._calibrated_on
    with pytest.raises(ConfigError, match="leave out method"):
        lm_eval.SparseLM(pretrained=str(folder), method="teal")
    model = larosa.load(folder)
    again = larosa.export(model, tmp_path / "again", weights="copy", tokenizer=larosa.load_tokenizer(folder))
    with caplog.at_level(logging.WARNING):
        assert lm_eval.SparseLM(pretrained=str(again))._calibrated_on == []
    assert "does not say what it was calibrated on" in caplog.text
