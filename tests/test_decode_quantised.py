"""The decoder on codes: it is the quantised model, the gate finds a wrong scale, bytes are those that it reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from larosa_kernels.common.gemv import GemvConfig
from larosa_kernels.ops.sparse_gemv import api
from test_decode import close, stepped
from test_decode_gate import few_programs  # noqa: F401  # a fixture
from test_methods import applied
from test_quantization import config
from test_schedule import method
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from conftest import SHAPE, build_model
from larosa.decode import benchmark
from larosa.decode.decoder import Decoder
from larosa.decode.errors import DecodeError
from larosa.decode.from_model import weights_of
from larosa.decode.matrix import PackedMatrix
from larosa.decode.parity import check_plain
from larosa.decode.parity_model import check_model
from larosa.decode.prefill import prefill
from larosa.decode.selectors import SiteSelector, dense_selectors, level_selectors, selectors_of
from larosa.decode.timing import compare, measure
from larosa.decode.weights import DecodeWeights, random_weights
from larosa.errors import ParityError
from larosa.evaluation.accounting import quantised_account
from larosa.quantization.apply import quantise

WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3}
CHOICES = ["w8", "w4_rtn", "w4_gptq_out"]
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "magnitude": ("magnitude", {}),
    "adapters": ("larosa/paper", {"granularity": "sublayer"}),
    "transforms": ("larosa/output_aware", {}),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path))


def wide(dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return build_model("qwen2", dtype=dtype, tied=True, **WIDE)


def random(
    scheme: str | None, head: bool = False, dtype: torch.dtype = torch.float32, wider: int = 1, **more: Any
) -> DecodeWeights:
    widths = {name: wider * WIDE[name] for name in ("hidden_size", "intermediate_size")}
    shape = AutoConfig.for_model("qwen2", **{**SHAPE, **WIDE, **widths})
    return random_weights(shape, dtype, torch.device("cpu"), seed=0, layers=2, **more).rounded(scheme, head)


@pytest.mark.parametrize(
    ("choice", "name", "more"),  # each choice with each method, and each of them with both formats of the head
    [(c, n, "none" if i == j else "w8") for i, c in enumerate(CHOICES) for j, n in enumerate(METHODS)],
)
def test_the_decoder_on_codes_is_the_quantised_model(choice: str, name: str, more: str, tokens: Tensor) -> None:
    model, ids, preset = wide(), tokens[:2, :12], METHODS[name]
    with applied(model, tokens, method(preset[0], **preset[1])) as handle:
        quantise(model, handle, config(choice, head=more, adapters=more), tokens)
        weights = weights_of(model, handle)
        assert weights.packed
        assert isinstance(weights.head, PackedMatrix) == (more == "w8")
        decoder, expected = Decoder(weights, selectors_of(handle), 16, batch=2), model(ids).logits
        close(stepped(decoder, ids), expected)
        close(prefill(decoder, ids), expected)
        close(stepped(Decoder(weights.dequantised(), selectors_of(handle), 16, batch=2), ids), expected)
        found = check_model(model, handle, weights, tokens[0, :12])
    assert found["relative_logits_error"] <= found["bound"]
    assert any(isinstance(m, PackedMatrix) for own in weights.layers for m in own.adapters.values()) == (
        name == "adapters" and more == "w8"
    )


@pytest.mark.parametrize("choice", CHOICES)
def test_the_gate_is_green_in_bfloat16_and_red_on_a_wrong_code(choice: str, tokens: Tensor) -> None:
    model = wide(torch.bfloat16)
    with applied(model, tokens, method("magnitude")) as handle:
        quantise(model, handle, config(choice), tokens)
        weights = weights_of(model, handle)
        check_model(model, handle, weights, tokens[0, :8])
        matrix = weights.layers[1].matrices["h3"]
        assert isinstance(matrix, PackedMatrix)
        wrong = dataclasses.replace(matrix, scale=matrix.scale * 1.2)
        weights.layers[1].matrices["h3"] = wrong
        with pytest.raises(ParityError):
            check_model(model, handle, weights, tokens[0, :8])


@pytest.mark.parametrize("scheme", ["w8", "w4_out"])
def test_random_codes_pass_the_plain_gate(scheme: str) -> None:
    weights = random(scheme, head=True, dtype=torch.bfloat16, adapters=1)
    for level in (0.0, 0.5):
        found = check_plain(weights, level_selectors(weights.shape, level))
        assert found["relative_logits_error"] <= found["bound"] < 0.3


@pytest.mark.parametrize(
    ("scheme", "level", "selector", "listed"),
    [
        ("w8", 0.5, "top-k", True),
        pytest.param("w8", 0.5, "threshold", True, marks=pytest.mark.slow),  # its parts are in the other cases
        ("w4_out", 0.5, "top-k", True),
        pytest.param("w8", 0.0, "top-k", False, marks=pytest.mark.slow),  # its products are in test_kernels_packed
        (None, 0.75, "top-k", True),
        (None, 0.75, "threshold", True),
        ("w8", 0.75, "threshold, unknown", True),
        (None, 0.75, "threshold, unknown", False),
    ],
    ids=str,
)
@pytest.mark.usefixtures("few_programs")
def test_a_fused_step_has_the_bits_and_launch_shapes_of_the_watched_one(
    scheme: str | None, level: float, selector: str, listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {**SHAPE, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    own = AutoConfig.for_model("llama", **{**shape, "vocab_size": 40})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    weights = random_weights(own, torch.bfloat16, device, seed=0, layers=1).rounded(scheme, head=scheme is not None)
    launched: list[tuple[str, GemvConfig]] = []
    for name in ("launch_rows", "launch_quantised"):
        launch = getattr(api, name)
        watched = lambda product, way, name=name, launch=launch: (launched.append((name, way)), launch(product, way))[1]  # noqa: E731
        monkeypatch.setattr(api, name, watched)
    selectors = level_selectors(weights.shape, 0.0 if selector == "threshold, unknown" else level)
    if selector != "top-k":
        selectors = {
            site: (SiteSelector(own.k, threshold=0.1 if site == "h1" else 0.01),) for site, (own,) in selectors.items()
        }
        selectors["h4"] = (dataclasses.replace(selectors["h4"][0], threshold=0.02, gated=True),)
    found = check_plain(weights, selectors, tokens=1, backend="triton")
    assert found["backend"] == "triton"
    assert found["bit_identical"]
    a_step = launched[: 4 + (scheme is not None)]  # the head's codes are a launch too
    assert launched == a_step * (len(launched) // len(a_step))
    assert scheme is not None or all(way.compact == listed for _, way in a_step[:4])  # codes always go by a list
    assert {name for name, _ in a_step[:4]} == {"launch_rows" if scheme is None else "launch_quantised"}
    assert all(name == "launch_rows" for name, _ in a_step[4:])  # 40 outputs do not come by 32


@pytest.mark.parametrize(("scheme", "bits"), [(None, 32), ("w8", 8), ("w4_out", 4)])
def test_bytes_are_codes_and_scales(scheme: str | None, bits: int) -> None:
    own, D, inner, kv = random(scheme, head=scheme is not None), 64, 128, 32
    sites = [(D, D + 2 * kv), (D, D), (D, 2 * inner), (inner, D)]
    for level in (0.0, 0.5):
        read = measure(Decoder(own, level_selectors(own.shape, level), 16), context=8, new_tokens=2, repeats=1)[
            "read_bytes"
        ]
        # Packed codes come in blocks of 256 outputs, gates and ups in blocks of 128 of each.
        stored = [-(-m // 256) * 256 if scheme == "w4_out" else m for _, m in sites]
        codes = 2 * sum((1 - level) * n * m * bits / 8 for (n, _), m in zip(sites, stored, strict=True))
        scales = {
            None: 0,
            "w8": 2 * sum(4 * m for _, m in sites),
            "w4_out": 2 * sum(2 * n * m / 64 for (n, _), m in zip(sites, stored, strict=True)),
        }
        assert read["projections"] == codes + scales[scheme]
        assert read["lm_head"] == (384 * D * 4 if scheme is None else 384 * D + 4 * 384)


def test_quantised_dense_stands_beside_dense_that_is_not() -> None:
    weights = random("w4_out", wider=4)  # whole blocks of packed codes
    rows = compare(weights, {"half": level_selectors(weights.shape, 0.5)}, (8,), (3,), repeats=2)
    kinds = [row["kind"] for row in rows]
    assert kinds == ["dense"] * 4 + ["quantised", "sparse"]
    assert rows[4]["read_bytes"]["projections"] < rows[3]["read_bytes"]["projections"] / 7  # of float32
    assert all("dense, " in row["best_dense"] and "quantised" not in row["best_dense"] for row in rows)


@pytest.mark.parametrize("choice", ["none", *CHOICES])
def test_the_account_of_a_plan_agrees_with_the_decoder(choice: str, tokens: Tensor) -> None:
    model = wide(torch.bfloat16)
    with applied(model, tokens, method("larosa/paper")) as handle:
        own = config(choice, head="w8", adapters="w8")
        quantise(model, handle, own, tokens)
        counted = quantised_account(handle.plan, own, 384)
        decoder = Decoder(weights_of(model, handle), selectors_of(handle), 16)
        read = measure(decoder, context=8, new_tokens=2, repeats=1)["read_bytes"]
        dense = measure(Decoder(decoder.weights, dense_selectors(handle.plan.shape), 16), 8, 2, 1)["read_bytes"]
    assert counted["read_bytes"] == read["projections"]
    assert counted["projection_bytes"] == dense["projections"]
    assert counted["overhead_bytes"] == read["adapters"]
    assert counted["head_bytes"] == read["lm_head"]
    assert counted["total_read_bytes"] == counted["read_bytes"] + counted["overhead_bytes"]


def test_groups_along_the_input_are_not_run(tokens: Tensor) -> None:
    model = wide()
    with applied(model, tokens, method("magnitude")) as handle:
        quantise(model, handle, config("w4_rtn", group_axis="in"), tokens)
        with pytest.raises(DecodeError, match="along the input"):
            weights_of(model, handle)


def test_adapters_in_codes_are_read_as_codes(tmp_path: Path) -> None:
    sizes = ["--contexts", "4", "--new-tokens", "2", "--repeats", "1", "--levels", "0.5", "--dtype", "float32"]
    words, read = ["--model", "tiny-llama", "--layers", "2", "--device", "cpu", *sizes], {}
    for name, more in (("float32", []), ("w8", ["--adapters-w8"])):
        out = tmp_path / f"{name}.json"
        benchmark.measure([*words, "--overhead", "adapter", *more, "--json", str(out)])
        record = json.loads(out.read_text())
        assert record["adapters"] == ("w8" if more else "none")
        read[name] = record["rows"][-1]["read_bytes"]["adapters"]
    assert (read["float32"], read["w8"]) == (4 * 64**2, 64**2 + 4 * 64)
    with pytest.raises(SystemExit, match="--overhead adapter"):
        benchmark.measure([*words, "--adapters-w8"])


@pytest.mark.parametrize("words", [["--quantization", "w8"], ["--quantization", "w4", "--head-w8"]], ids=str)
def test_the_benchmark_times_codes(words: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    sizes = ["--contexts", "4", "--new-tokens", "2", "--repeats", "1", "--levels", "0,0.5", "--dtype", "float32"]
    benchmark.measure(["--model", "tiny-llama", "--layers", "1", "--device", "cpu", *sizes, *words, "--json", str(out)])
    record = json.loads(out.read_text())
    assert (record["quantization"], record["head"]) == (words[1], "w8" if "--head-w8" in words else "none")
    assert [row["kind"] for row in record["rows"]].count("quantised") == 1
    assert all(gate["bit_identical"] for gate in record["parity"]["4"].values())
    with pytest.raises(SystemExit, match="--prefill"):
        benchmark.measure(["--model", "tiny-llama", "--device", "cpu", "--prefill", "8", *words])
