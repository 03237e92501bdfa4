"""Weights on a grid: the two grids themselves, and models whose weights stand on them, removable bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_config import parse
from test_methods import applied
from test_pipeline import overrides  # noqa: F401  # a fixture: a tiny run on texts of one's own
from test_schedule import method
from torch import Tensor

from conftest import CONF, build_model
from larosa.cli.command import not_quantised
from larosa.config.quantization import QuantizationConfig
from larosa.config.run import ConfigError
from larosa.errors import ParityError
from larosa.evaluation import parity
from larosa.experiment import results
from larosa.experiment.pipeline import run
from larosa.experiment.plan_runs import plan_runs
from larosa.models.architecture import ModelView
from larosa.models.formats import GROUP, SCHEMES, QuantizationError, quantised
from larosa.quantization import external
from larosa.quantization.apply import quantise

CHOICES = sorted(path.stem for path in (CONF / "quantization").glob("*.yaml"))
ROUNDED = ["w8", "w4_rtn", "w8_gptq", "w4_gptq_out"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path))


def config(name: str, **more: Any) -> QuantizationConfig:
    return QuantizationConfig(**{**yaml.safe_load((CONF / f"quantization/{name}.yaml").read_text()), **more})


def matrix(n: int, m: int, seed: int = 0) -> Tensor:
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_has_a_known_format(name: str) -> None:
    assert not config(name).active or config(name).scheme in SCHEMES


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("n", "m"), [(64, 128), (70, 65), (1, 1), (130, 3)])
def test_no_weight_is_further_from_its_grid_than_half_a_step(scheme: str, n: int, m: int) -> None:
    W = matrix(n, m)
    found = quantised(W, scheme)
    step = found.factor().double().abs().expand(n, m)
    clipped = step * (1 + 8 * 2**-8) / 2 if scheme == "w8" else step * (1 + 16 * 2**-8)
    assert ((found.dense(torch.float64) - W).abs() <= clipped).all()
    largest = 127 if scheme == "w8" else 8
    assert int(found.qweight.abs().max()) == largest
    bits = 8 if scheme == "w8" else 4
    scales = {"w8": 4 * m, "w4_out": 2 * n * -(-m // GROUP), "w4_in": 2 * m * -(-n // GROUP)}[scheme]
    assert found.stored_bytes == (n * m * bits + 7) // 8 + scales


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_stands_on_a_grid_stays_where_it_is(scheme: str) -> None:
    once = quantised(matrix(70, 130), scheme)
    again = quantised(once.dense(torch.float64), scheme)
    assert torch.equal(again.qweight, once.qweight)
    assert torch.allclose(again.dense(torch.float64), once.dense(torch.float64), rtol=1e-6, atol=0)


def test_a_row_alone_has_the_codes_that_it_has_among_others() -> None:
    """Groups along the output: a skipped input takes its scales along."""
    W = matrix(70, 130)
    whole, alone = quantised(W, "w4_out"), quantised(W[3:4], "w4_out")
    assert torch.equal(whole.qweight[3:4], alone.qweight)
    assert torch.equal(whole.scale[:, 3:4], alone.scale)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_zeros_stay_zeros_and_what_is_not_finite_is_refused(scheme: str) -> None:
    assert not quantised(torch.zeros(66, 70), scheme).dense(torch.float32).any()
    with pytest.raises(QuantizationError, match="NaN or infinity"):
        quantised(torch.full((2, 2), float("nan")), scheme)
    with pytest.raises(QuantizationError, match="expected one of w8"):
        quantised(torch.ones(2, 2), "w3")


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("dense", {}),
    "layer": ("larosa/paper", {}),
    "online": ("larosa/output_aware", {}),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("choice", ROUNDED)
@pytest.mark.parametrize("keep", ["none", "w8"])
def test_turned_then_rounded_then_removed_bit_for_bit(choice: str, name: str, keep: str, tokens: Tensor) -> None:
    model = build_model("qwen2", dtype=torch.float32, tied=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    expected, preset = model(tokens).logits, METHODS[name]
    with applied(model, tokens, method(preset[0], **preset[1])) as handle:
        turned = {(v.index, s): [r.weight for r in v.consumers(s)] for v, s in ModelView(model).sites()}
        said = quantise(model, handle, config(choice, head=keep), tokens)
        assert 0 < said["relative_weight_error"] < (0.02 if choice.startswith("w8") else 0.2)
        for (index, site), own in turned.items():
            rows = torch.cat([linear.weight for linear in ModelView(model).layers[index].consumers(site)])
            assert torch.equal(rows, handle.quantised[index, site].dense(torch.float32).T)
            assert float((rows - torch.cat(own)).norm() / torch.cat(own).norm()) < 0.2
        assert (handle.quantised_head is not None) == (keep == "w8")
        assert handle.kept_bytes <= sum(4 * value.numel() for value in before.values())  # not what was only turned
        with handle.level_zero():
            rounded = model(tokens).logits
        off = float((rounded - expected).norm() / expected.norm())
        assert 1e-4 < off < (0.1 if choice.startswith("w8") else 1.0)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(tokens).logits, expected)


def test_the_proof_at_level_zero_comes_before_the_rounding(tokens: Tensor) -> None:
    """Rounded weights would not pass it, nor should its bound be widened for them."""
    model = build_model("llama", dtype=torch.float32)
    dense = parity.reference(model, tokens)
    with applied(model, tokens, method("larosa/paper")) as handle:
        parity.check(model, handle, dense)
        quantise(model, handle, config("w4_rtn"), tokens)
        with pytest.raises(ParityError):
            parity.check(model, handle, dense)


def test_adapters_in_int8_are_what_runs_and_what_is_counted(tokens: Tensor) -> None:
    model = build_model("llama", dtype=torch.float32)
    with applied(model, tokens, method("larosa/paper")) as handle:
        wide, bytes_before = [adapter.matrix for adapter in handle.adapters], handle.adapter_bytes
        quantise(model, handle, config("none", adapters="w8"), tokens)
        assert 0 < len(wide) == len(handle.adapters)
        for adapter, old in zip(handle.adapters, wide, strict=True):
            assert 0 < float((adapter.matrix - old).norm() / old.norm()) < 0.01
        assert handle.adapter_bytes < bytes_before / 3  # of float32: a quarter, and scales


@pytest.mark.parametrize("choice", CHOICES)
def test_identities_of_runs_without_are_what_they_were(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("larosa.experiment.plan_runs.check_installed", lambda _: None)
    run = parse(f"quantization={choice}")
    found = results.identity(run, {"weights": "x"}, "cpu")
    if choice == "none":
        assert "quantization" not in found
        return
    assert found["quantization"]["weights"] == run.quantization.weights
    assert ("calibration" in found["quantization"]) == (run.quantization.quantizer != "rtn")
    assert ("group_axis" in found["quantization"]) == (run.quantization.weights == "w4")
    folders = {cell.folder for name in ("none", choice) for cell in plan_runs(parse(f"quantization={name}")).values()}
    assert len(folders) == 2 * len(plan_runs(run))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["quantization=w8", "quantization.group_axis=in"], "belongs to weights=w4"),
        (["quantization=w8", "quantization.quantizer=awq"], "groups along the input"),
        (["quantization=w4_awq", "quantization.group_axis=out"], "groups along the input"),
        (["quantization=none", "quantization.quantizer=gptq"], "belongs to weights=w8 or w4"),
        (["quantization=w4_rtn", "quantization.group_axis=in", "evaluation=speed"], "groups along the output"),
        (["quantization=w8", "method=wina", "evaluation=speed"], "column norms"),
        (["quantization=w4_awq", "quantization.attention_sink_weight=2"], "belongs to quantization.quantizer=gptq"),
        (["quantization=w3"], "quantization"),
        (["quantization.weights=w3"], "quantization.weights"),
    ],
)
def test_impossible_settings_are_named(settings: list[str], message: str) -> None:
    with pytest.raises(Exception, match=message) as found:
        parse(*settings)
    assert message == "quantization" or isinstance(found.value, ConfigError)


def test_a_missing_library_is_named_before_anything_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "find_spec", lambda _: None)
    with pytest.raises(QuantizationError, match="pip install"):
        plan_runs(parse("quantization=w4_gptq"))
    for ours in ("w8_gptq", "w4_gptq_out"):
        assert plan_runs(parse(f"quantization={ours}"))


def test_a_quantiser_reads_as_many_sequences_as_asked(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("larosa.experiment.plan_runs.check_installed", lambda _: None)
    assert plan_runs(parse("quantization=w4_gptq", "quantization.sequences=2", "calibration.sequences=2"))
    with pytest.raises(ConfigError, match="expected at most as many"):
        plan_runs(parse("quantization=w4_gptq", "quantization.sequences=3", "calibration.sequences=2"))
    read: list[Tensor] = []
    monkeypatch.setattr("larosa.quantization.apply.quantise_layers", lambda *given: read.append(given[-1]) or {})
    model = build_model("llama", dtype=torch.float32)
    with applied(model, tokens, method("larosa/paper")) as handle:
        for wanted in (None, 1):
            quantise(model, handle, config("w4_gptq", sequences=wanted), tokens)
    assert torch.equal(read[0], tokens)
    assert torch.equal(read[1], tokens[:1])
    identities = [
        results.identity(parse("quantization=w4_awq", f"quantization.sequences={own}"), {"weights": "x"}, "cpu")
        for own in ("null", "1", "2")
    ]
    assert all(one != other for one in identities for other in identities if one is not other)
    rtn = [parse("quantization=w4_rtn", f"quantization.sequences={own}") for own in ("null", "2")]
    assert len({str(results.identity(own, {"weights": "x"}, "cpu")) for own in rtn}) == 1  # it reads none


def test_a_first_token_counts_as_often_as_asked_in_second_moments() -> None:
    x = matrix(5, 7)[None]
    assert external._counted(x, None) is x
    found, first = external._counted(x, 9.0)[0], x[0, :1]
    assert torch.allclose(found.T @ found, x[0].T @ x[0] + 8 * first.T @ first)


def test_gptq_errs_less_at_first_tokens_that_count_more() -> None:
    pytest.importorskip("neural_compressor")
    inputs = [matrix(60, 128, seed).float()[None] for seed in range(4)]
    for x in inputs:
        x[:, 0] = matrix(1, 128, seed=9).float() / 3  # the same sink, shorter than any other token
    W, exact = matrix(96, 128, seed=10).float(), inputs[0][0]
    off = {}
    for weight in (None, 64.0):
        (new,) = external.rounded([W], [external._counted(x, weight) for x in inputs], "gptq")
        off[weight] = ((exact @ (new - W).T).norm(dim=-1) / (exact @ W.T).norm(dim=-1)).tolist()
    assert off[64.0][0] < 0.5 * off[None][0]
    assert sum(off[64.0]) < 1.2 * sum(off[None])


@pytest.mark.parametrize("chosen", ["w4_gptq", "w4_awq", "w4_gptq_out", "w8_gptq"])
def test_a_calibrated_quantiser_errs_less_than_rounding_to_nearest(chosen: str, tokens: Tensor) -> None:
    """On the outputs that its calibration tokens give, and only the weights that read a site move."""
    own = config(chosen)
    if own.group_axis == "in":
        pytest.importorskip("neural_compressor")
    model = build_model("llama", dtype=torch.float32, hidden_size=128, intermediate_size=192, num_attention_heads=4)
    with applied(model, tokens, method("larosa/paper"), sparsity=0.3) as handle:
        with handle.level_zero():
            exact = model(tokens).logits
        off = {}
        for choice, more in (("w8" if own.weights == "w8" else "w4_rtn", {"group_axis": own.group_axis}), (chosen, {})):
            weights = {linear: linear.weight for v, s in ModelView(model).sites() for linear in v.consumers(s)}
            assert quantise(model, handle, config(choice, **more), tokens)["relative_weight_error"] > 0
            with handle.level_zero():
                off[choice] = float((model(tokens).logits - exact).norm())
            for linear, weight in weights.items():
                handle.exchange(linear, "weight", weight)
        rounded = off.pop("w8" if own.weights == "w8" else "w4_rtn")
        assert off[chosen] < rounded


def test_a_run_quantises_all_its_cells_alike_after_the_proof(overrides: list[str]) -> None:  # noqa: F811
    chosen = [*overrides, "method=larosa/paper", "baseline=[dense]", "sparsity=0.3"]
    speed = "evaluation.speed={contexts: [4], new_tokens: [2], repeats: 1, parity_tokens: 4}"
    plain = run(parse(*chosen))
    eight = run(
        parse(
            *chosen, "quantization=w8", "quantization.head=w8", "quantization.adapters=w8", speed, "backend=reference"
        )
    )
    four = run(parse(*chosen, "quantization=w4_rtn"))
    assert list(plain) == list(eight) == list(four)
    for name, record in plain.items():
        assert "quantization" not in record["metrics"]
        assert "quantised" not in record["metrics"]["accounting"]
        at = [found[name]["metrics"]["perplexity"]["text"]["perplexity"] for found in (plain, eight, four)]
        assert at[0] not in at[1:]  # which of the two moves it further is chance on weights drawn at random
        errors = [found[name]["metrics"]["quantization"]["relative_weight_error"] for found in (eight, four)]
        assert 0 < 8 * errors[0] < errors[1]  # 16 times finer steps, but for scales of fewer weights
        for found, widest in ((eight, 0.02), (four, 0.2)):
            own = found[name]["metrics"]
            assert own["parity"] == record["metrics"]["parity"]  # proved before anything was rounded
            assert 0 < own["quantization"]["relative_weight_error"] < widest
            assert own["accounting"]["quantised"]["total_read_bytes"] < own["accounting"]["projection_bytes"]
        assert eight[name]["metrics"]["speed"]["parity"]["relative_logits_error"] < 1e-4
        kinds = [row["kind"] for row in eight[name]["metrics"]["speed"]["rows"]]
        assert kinds == ["dense"] * 4 + ["quantised"] + ["sparse"] * (name != "dense")


def test_commands_that_do_not_round_say_so() -> None:
    assert not not_quantised(parse()).quantization.active
    with pytest.raises(ConfigError, match="quantization=none"):
        not_quantised(parse("quantization=w8"))
