"""`python -m larosa.cli.diagnose`: the numbers of its files against their definitions, on a tiny model."""

from __future__ import annotations

import json
import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from test_pipeline import write_text

from conftest import CONF, ROOT
from larosa import models
from larosa.calibration.calibrator import Calibrator
from larosa.cli.command import read_settings
from larosa.cli.diagnose import diagnose
from larosa.cli.launch import in_sweep
from larosa.cli.sweep import Sweep
from larosa.config.run import ConfigError, RunConfig
from larosa.data.texts import load_documents
from larosa.data.tokens import calibration_block, evaluation_block
from larosa.evaluation.tap import dense_activations
from larosa.experiment.diagnostics.covariance import cosines
from larosa.experiment.diagnostics.surface import surface
from larosa.experiment.results import identity
from larosa.sparsity.top_k import theoretical_error
from larosa_analysis.figures import every
from larosa_analysis.records import store

LAYER, TOKENS = 1, 40
LEVELS = (0.25, 0.5, 0.75)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path / "cache"))
    calibration, held_out = write_text(tmp_path / "a.txt", 0), write_text(tmp_path / "b.txt", 1)
    return [
        "model=tiny-llama", "calibration=text", f"calibration.text.files=[{calibration}]", "calibration.length=64",
        "calibration.sequences=8", "texts=text", f"texts.text.files=[{held_out}]", "calibration.text.name=own",
        "evaluation.perplexity.length=64", f"diagnostics.layer={LAYER}",
        f"diagnostics.levels=[{','.join(map(str, LEVELS))}]", f"diagnostics.tokens={TOKENS}",
        "diagnostics.surface_tokens=8", "diagnostics.channels=20", f"output={tmp_path / 'runs'}",
    ]  # fmt: skip


def read(kind: str, settings: list[str], *more: str) -> tuple[dict[str, Any], RunConfig]:
    config = read_settings([*settings, *more])
    path = diagnose(kind, config)
    assert path.name == f"inspect-{kind}-tiny-llama.json"
    record = json.loads(path.read_text())
    assert (record["schema"], record["kind"], record["model"]) == (2, kind, "tiny-llama")
    assert {"created", "git", "versions", "hardware", "data", "values"} <= set(record)
    assert str(Path.cwd()) not in path.read_text()
    return record, config


def dense_input(config: RunConfig, site: str, tokens: int) -> torch.Tensor:
    """[tokens, width]: what a site's readers get behind the first token of the evaluation text."""
    text, tokenizer = config.texts["text"], models.load_tokenizer(config.model)
    block = evaluation_block(load_documents(text), tokenizer, text, 64, None)
    return dense_activations(models.load_model(config.model, 0), block.ids[0][: 1 + tokens], LAYER, site)[1:]


def test_surface_before_and_after(settings: list[str]) -> None:
    record, config = read("surface", settings, "method=larosa/official", "baseline=magnitude")
    values = record["values"]
    x = dense_input(config, "h1", 8)
    width = x.shape[1]
    assert (values["layer"], values["site"], values["tokens"], values["first_token"]) == (LAYER, "h1", 8, 1)
    size = -(-width // 20)
    assert values["channels"] == -(-width // size) <= 20
    expected = [[float(row[c : c + size].abs().max()) for c in range(0, width, size)] for row in x]
    assert torch.allclose(torch.tensor(values["before"]), torch.tensor(expected), rtol=1e-3)
    plain, turned = values["after"].values()
    assert plain == values["before"]  # magnitude turns nothing
    assert turned != values["before"]
    assert len(turned) == 8
    assert all(len(row) == values["channels"] for row in turned)


def test_a_narrow_surface_is_not_pooled() -> None:
    z = torch.tensor([[1.0, -2.0, 3.0]])
    assert surface(z, 3) == surface(z, 9) == [[1.0, 2.0, 3.0]]
    assert surface(z, 2) == [[2.0, 3.0]]


def test_thresholds_calibrated_and_needed(settings: list[str]) -> None:
    record, config = read("thresholds", settings, "method=teal", "baseline=none", "sparsity=0.5")
    values = record["values"]
    assert values["method"] == "teal"
    assert values["levels"] == list(LEVELS)
    for by_level in values["calibrated"].values():
        assert len(by_level) == len(LEVELS)
        for lower, higher in pairwise(by_level):
            assert all(a < b for a, b in zip(lower, higher, strict=True))  # every layer
    needed, x = values["needed"], dense_input(config, "h1", TOKENS)
    assert (needed["site"], needed["layer"], needed["level"]) == ("h1", LAYER, 0.5)
    assert needed["calibrated"] == pytest.approx(values["calibrated"]["h1"][1][LAYER])
    assert needed["per_token"] == pytest.approx(x.abs().sort(dim=1).values[:, x.shape[1] // 2].tolist(), rel=1e-5)


def test_error_curve_is_the_readers_error(settings: list[str]) -> None:
    chosen = ["method=larosa/paper", "baseline=[teal,magnitude]"]
    record, config = read("error_curve", settings, *chosen)
    values = record["values"]
    assert values["site"] == "h4"
    assert values["theory"] == [theoretical_error(level) for level in LEVELS]
    x, model = dense_input(config, "h4", TOKENS), models.load_model(config.model, 0)
    weight = model.model.layers[LAYER].mlp.down_proj.weight
    for level, found in zip(LEVELS, values["measured"]["magnitude"], strict=True):
        zeros = math.floor(level * x.shape[1] + 0.5)
        lost = x * (x.abs() < x.abs().sort(dim=1).values[:, zeros : zeros + 1])
        expected = ((lost @ weight.T).norm(dim=1) / (x @ weight.T).norm(dim=1)).mean()
        assert found == pytest.approx(float(expected), rel=1e-4)
    larosa = next(own for label, own in values["measured"].items() if label.startswith("larosa"))
    assert larosa == pytest.approx(values["measured"]["magnitude"], rel=1e-3)  # h4 is not rotated
    assert values["achieved"]["magnitude"] == pytest.approx(LEVELS, abs=0.5 / x.shape[1] + 1e-9)
    assert values["achieved"]["teal"] != values["achieved"]["magnitude"]


@pytest.mark.parametrize("method", ["larosa/official", "larosa/output_aware"])
def test_error_curve_in_other_coordinates(settings: list[str], method: str) -> None:
    record, _ = read("error_curve", settings, f"method={method}", "baseline=none", "diagnostics.site=h1")
    (errors,) = record["values"]["measured"].values()
    assert 0 < errors[0] < errors[1] < errors[2] < 1


def test_covariance_of_two_texts(settings: list[str]) -> None:
    record, config = read("covariance", settings, "diagnostics.site=h3")
    values = record["values"]
    assert (values["sets"], values["site"]) == (["own", "text"], "h3")
    model, tokenizer = models.load_model(config.model, 0), models.load_tokenizer(config.model)
    moments = []
    for text in (config.calibration.text, config.texts["text"]):
        own = config.calibration.model_copy(update={"text": text})
        block = calibration_block(load_documents(text), tokenizer, own, 0)
        moments.append(Calibrator(model, block, models.fingerprint(config.model), 4, 0).second_moments()[:, 1])
    a, b = (moment.flatten(1).double() for moment in moments)
    expected = torch.nn.functional.cosine_similarity(a, b)
    assert values["by_layer"]["own|text"] == pytest.approx(expected.tolist())
    assert torch.tensor(values["cosine"]).diag().tolist() == pytest.approx([1, 1])
    assert values["cosine"][0][1] == values["cosine"][1][0] == pytest.approx(float(expected.mean()))
    assert set(record["data"]) == {"own", "text"}


def test_cosine_of_orthogonal_moments_is_zero() -> None:
    first, second = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    first[0, :, 0, 0] = 3.0
    second[0, :, 1, 1] = 5.0
    found = cosines({"a": first, "b": second, "c": first + second}, "h1")["by_layer"]
    assert found["a|b"] == [0.0]
    assert found["a|c"] == pytest.approx([3 / math.sqrt(34)])


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("surfaces", [], "there is no diagnostic 'surfaces'"),
        ("surface", ["method=dense", "baseline=none"], "dense model drops nothing"),
        ("surface", ["diagnostics.layer=3"], "layers 0 to 2"),
        ("surface", ["diagnostics.surface_tokens=64"], "a block has 64"),
        ("thresholds", ["method=teal", "baseline=magnitude"], "baseline=none"),
        ("error_curve", ["method=cats", "baseline=none"], "no levels of their own"),
        ("covariance", ["diagnostics.site=h4"], "h1 and h3"),
    ],
)
def test_what_cannot_be_shown_is_refused(settings: list[str], kind: str, more: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        diagnose(kind, read_settings([*settings, *more]))


@pytest.mark.parametrize(("name", "figure"), [("figure1", "figure1"), ("figure5", "figure5")])
def test_a_figures_sweep_fills_it(settings: list[str], tmp_path: Path, name: str, figure: str) -> None:
    words = [*settings, "sparsity=0.4", "schedule=uniform"]
    with initialize_config_dir(str(ROOT / "sweeps"), version_base="1.3"):
        found = compose(name, [f"hydra.searchpath=[file://{CONF}]", *words])
    given = Sweep("group", tmp_path / "sweep", os.getpid(), "python run.py")
    made = []
    for _ in range(2):  # the second time it is there already
        in_sweep(given, found, words, "")
        (outcome,) = given.outcomes()
        assert not outcome.failed
        (path,) = (tmp_path / "runs").glob("inspect-*.json")
        made.append(path.stat().st_mtime_ns)
    assert made[0] == made[1]
    drawn = {own.name: own for own in every.build(store.read(tmp_path / "runs", tmp_path / "none"))}
    assert drawn[figure].figure is not None


def test_a_failed_diagnostic_is_noted_and_success_removes_the_note(settings: list[str], tmp_path: Path) -> None:
    given = Sweep("group", tmp_path / "sweep", os.getpid(), "python run.py")
    notes = []
    for layer in (3, LAYER):
        words = [*settings, "diagnostics.kind=surface", f"diagnostics.layer={layer}"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            in_sweep(given, compose("config", words), ["same"], "python run.py")
        (outcome,) = given.outcomes()
        notes.append([json.loads(path.read_text()) for path in (tmp_path / "runs").glob("failed-*/failed.json")])
        assert bool(outcome.failed) == (layer == 3)
    (note,), after = notes
    assert note["asked"]["diagnostics"] == "surface"
    assert after == []


def test_other_settings_or_force_diagnose_again(settings: list[str]) -> None:
    chosen = ["surface", settings, "method=magnitude", "baseline=none"]
    first, _ = read(*chosen)
    assert read(*chosen)[0] == first
    assert read(*chosen, "diagnostics.surface_tokens=4")[0]["identity"] != first["identity"]
    again, _ = read(*chosen)
    assert again["values"] == first["values"]
    path = diagnose("surface", read_settings([*chosen[1], *chosen[2:]]))
    path.write_text(path.read_text().replace('"tokens":8', '"tokens":9'))
    assert read(*chosen, "force=true")[0]["values"] == first["values"]


def test_diagnostics_do_not_shape_a_run(settings: list[str]) -> None:
    one, other = read_settings(settings), read_settings([*settings, "diagnostics.tokens=3"])
    assert identity(one, {}, "cpu") == identity(other, {}, "cpu")
