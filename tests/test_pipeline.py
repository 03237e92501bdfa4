"""Whole runs on a tiny model with texts of one's own: records, resuming, determinism, damage, interruption."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import typed
from test_config import parse

from larosa.config.run import ConfigError
from larosa.data.overlap import OverlapError
from larosa.evaluation.perplexity import EvaluationError, perplexity
from larosa.experiment.pipeline import run
from larosa.experiment.results import RecordError, save_record
from larosa.experiment.tracking import scalars
from larosa.models.architecture import ModelView
from larosa_analysis.records.timings import of_runs

SENTENCE = "the cat sat on a mat while seven dogs ran over green hills and nobody asked why it rained"
WORDS = SENTENCE.split()


def write_text(path: Path, seed: int, words: int = 1500) -> Path:
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(WORDS), (words,), generator=generator).tolist()
    path.write_text(" ".join(WORDS[i] for i in picks))
    return path


@pytest.fixture
def overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path / "cache"))
    calibration, held_out = write_text(tmp_path / "a.txt", 0), write_text(tmp_path / "b.txt", 1)
    return [
        "model=tiny-llama", "calibration=text", f"calibration.text.files=[{calibration}]", "calibration.length=64",
        "calibration.sequences=8", "texts=text", f"texts.text.files=[{held_out}]", "evaluation.perplexity.length=64",
        "evaluation.perplexity.max_tokens=256", "evaluation.zero_shot.tasks=[]", "tracking=off",
        f"output={tmp_path / 'runs'}", "figures=null",  # they take longer than the rest of a tiny run
    ]  # fmt: skip


def metrics(record: dict[str, Any]) -> dict[str, Any]:
    return dict(record["metrics"])


@pytest.fixture
def drawn(overrides: list[str]) -> list[str]:
    """The same for runs that draw their figures."""
    return [word for word in overrides if word != "figures=null"]


def test_a_run_leaves_complete_records_and_the_second_returns_them(drawn: list[str], tmp_path: Path) -> None:
    records = run(parse(*drawn))
    assert list(records) == ["dense", "magnitude", "larosa (online, output_aware, per sublayer, int8)"]
    folders = sorted(path.parent for path in (tmp_path / "runs").glob("*/result.json"))
    assert len(folders) == 3
    larosa = json.loads(next(p for p in folders if "larosa" in p.name).joinpath("result.json").read_text())
    found = larosa["metrics"]
    assert found["parity"]["relative_logits_error"] <= found["parity"]["bound"] < 1e-2
    asked, planned = found["accounting"]["target_sparsity"], found["accounting"]["weight_sparsity"]
    assert asked == 0.4
    assert planned == pytest.approx(0.4, abs=0.01)
    assert "batch size 1 makes" in found["batch_dependence"].lower()
    assert "batch_dependence" not in records["dense"]["metrics"]
    measured = found["achieved_sparsity"]["text"]
    assert measured["weight_sparsity_mean"] == pytest.approx(planned, abs=1e-9)
    assert measured["weight_sparsity_std_over_tokens"] == pytest.approx(0, abs=1e-12)
    assert found["achieved_over_texts"] == dict.fromkeys(("mean", "min", "max"), measured["weight_sparsity_mean"])
    assert found["accounting"]["overhead"]["products"] == 6
    assert len(found["errors"]["layer_error"]) == 3
    assert all(0 < e < 1 for e in found["errors"]["layer_error"])
    assert all(q == sorted(q) for site in found["errors"]["thresholds"].values() for q in site)
    for key in ("identity", "config", "git", "versions", "hardware", "data", "stages", "units"):
        assert larosa[key]
    main = next(p for p in folders if "larosa" in p.name)
    for name in ("comparison.md", "comparison.json", "quality.png", "output_error.png", "thresholds.png"):
        assert (main / name).stat().st_size > 0
    stamps = {p: (p / "result.json").stat().st_mtime_ns for p in folders}
    assert run(parse(*drawn)) == records
    assert stamps == {p: (p / "result.json").stat().st_mtime_ns for p in folders}


def test_two_runs_of_one_identity_are_equal(overrides: list[str], tmp_path: Path) -> None:
    first = run(parse(*overrides))
    shutil.rmtree(tmp_path / "cache")
    second = run(parse(*overrides, "force=true"))
    assert {n: metrics(r) for n, r in first.items()} == {n: metrics(r) for n, r in second.items()}
    assert all(first[name]["created"] <= second[name]["created"] for name in first)


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-mistral", "tiny-qwen2"])
@pytest.mark.parametrize("form", ["absorbed", "simulated"])
def test_level_zero_has_the_dense_perplexity(overrides: list[str], model: str, form: str) -> None:
    records = run(
        parse(
            *overrides,
            f"model={model}",
            "sparsity=0",
            "method=larosa/paper",
            f"method.form={form}",
            "model.dtype=float64",
        )
    )
    values = [record["metrics"]["perplexity"]["text"]["perplexity"] for record in records.values()]
    assert values[1] == values[0]
    assert values[2] == pytest.approx(values[0], rel=1e-10)


def test_perplexity_is_that_of_transformers(overrides: list[str]) -> None:
    from larosa.models.load import load_model

    model = load_model(parse(*overrides).model, seed=0)
    ids = torch.randint(3, 384, (3, 40), generator=torch.Generator().manual_seed(0))
    losses = [float(model(input_ids=row[None], labels=row[None]).loss) for row in ids]
    expected = torch.tensor(losses).double().mean().exp()
    assert perplexity(model, ids, 2, "test")["perplexity"] == pytest.approx(float(expected), rel=1e-5)
    ModelView(model).head.weight.fill_(float("nan"))
    with pytest.raises(EvaluationError, match="NaN or infinity"):
        perplexity(model, ids, 2, "test")


def test_calibration_is_shared_between_levels(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run(parse(*overrides, "baseline=none"))
    monkeypatch.setattr("larosa.calibration.calibrator.second_moments", lambda *_: pytest.fail("calibrated again"))
    run(parse(*overrides, "baseline=none", "sparsity=0.5"))
    run(parse(*overrides, "baseline=none", "seed=0", "schedule=uniform"))


def test_the_calibration_text_is_refused_as_evaluation_text(overrides: list[str], tmp_path: Path) -> None:
    record = next(iter(run(parse(*overrides, "baseline=none")).values()))
    assert record["data"]["texts"]["text"]["overlap_with_calibration"]["shared_documents"] == 0
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.txt").read_bytes())
    (tmp_path / "longer.txt").write_text((tmp_path / "a.txt").read_text() + " and one more sentence at its end")
    for name in ("a.txt", "marked.txt", "longer.txt"):
        with pytest.raises(OverlapError, match="not held out"):
            run(parse(*overrides, "seed=1", f"texts.text.files=[{tmp_path / name}]"))


def test_random_models_of_two_seeds_do_not_share_a_calibration(overrides: list[str], tmp_path: Path) -> None:
    for seed in (0, 1):
        run(parse(*overrides, "method=larosa/paper", "baseline=none", "calibration.sampling=first", f"seed={seed}"))
    assert len(list((tmp_path / "cache" / "calibration").glob("rotation-*.safetensors"))) == 2


def test_an_overflow_is_named_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"record\.metrics\[1\] is nan"):
        save_record(tmp_path, {"identity": "x", "metrics": [1.0, float("nan")]})
    assert not (tmp_path / "result.json").exists()


def test_kill_9_leaves_no_half_record_and_the_next_run_succeeds(overrides: list[str], tmp_path: Path) -> None:
    process = typed.start(*overrides, said=tmp_path / "said")
    typed.until(process, lambda: "recorded" in (tmp_path / "said" / "err").read_text(), "recording a run")
    time.sleep(0.02)
    process.kill()
    process.join()
    done = [json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/result.json")]
    assert 1 <= len(done) < 3
    assert len(run(parse(*overrides))) == 3


def test_wandb_offline_run_is_closed(drawn: list[str], tmp_path: Path) -> None:
    run(parse(*drawn, "tracking=offline"))
    assert len(list((tmp_path / "runs" / "wandb").glob("offline-run-*/*.wandb"))) == 1
    run(parse(*drawn, "tracking=offline"))
    assert len(list((tmp_path / "runs" / "wandb").glob("offline-run-*/*.wandb"))) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_run_times_what_it_evaluated(
    overrides: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    timed = ["evaluation=speed", "evaluation.speed.contexts=[16]", "evaluation.speed.new_tokens=[3]"]
    with pytest.raises(ConfigError, match="evaluation=speed times"):
        run(parse(*timed, *overrides))
    timed.append("backend=reference")
    chosen = [*timed, *overrides, "evaluation.speed.repeats=1", "baseline=dense", "evaluation.perplexity.max_tokens=64"]
    dense, larosa = run(parse(*chosen)).values()
    assert [row["kind"] for row in dense["metrics"]["speed"]["rows"]] == ["dense"] * 4
    found = larosa["metrics"]["speed"]
    assert found["backend"] == larosa["backend"] == "reference"
    assert found["parity"]["relative_logits_error"] <= found["parity"]["bound"]
    assert found["rows"][-1]["name"] == "larosa"
    asked = larosa["metrics"]["accounting"]["planned_sparsity"]
    kept = found["rows"][-1]["kept_share"]
    assert all(kept[site] == pytest.approx(1 - sum(own) / len(own)) for site, own in asked.items())
    logged = scalars(larosa["metrics"])
    assert logged["speed/summary/sparse/tokens_per_s"] > 0
    assert logged["speed/parity/top1_agreement"] == 1.0
    doubt = "torch reference on CPU, not a speed measurement"
    assert found["caveat"] == doubt
    assert doubt in caplog.text
    shown = " ".join(capsys.readouterr().out.replace("│", " ").replace("┃", " ").split())
    assert "not a speed" in shown
    for table in (tmp_path / "runs").glob("*/comparison.*"):
        for number in ("tokens/s", "speed-up"):
            assert table.read_text().count(number) == table.read_text().count(f"{number} ({doubt})") > 0
    assert of_runs([larosa]) == []
