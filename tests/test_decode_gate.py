"""The correctness gate: green on every method, red on a broken weight, mask or product."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from larosa_kernels.ops.decode_attention.workspace import AttentionConfig
from test_decode import METHODS, chosen, small
from test_methods import applied
from torch import Tensor
from transformers import AutoConfig

from conftest import SHAPE
from larosa.decode import ops
from larosa.decode.decoder import Decoder
from larosa.decode.dense import DenseDecoder, transposed
from larosa.decode.from_model import weights_of
from larosa.decode.parity import check_plain
from larosa.decode.parity_model import check_model
from larosa.decode.selectors import SiteSelector, level_selectors
from larosa.decode.weights import DecodeWeights, random_weights
from larosa.errors import ParityError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAROSA_CACHE", str(tmp_path))


def random(kind: str = "qwen2", dtype: torch.dtype = torch.bfloat16, **more: object) -> DecodeWeights:
    config = AutoConfig.for_model(kind, **SHAPE)
    return random_weights(config, dtype, torch.device("cpu"), seed=0, layers=2, **more)


@pytest.mark.parametrize("name", METHODS)
def test_the_gate_is_green(name: str, tokens: Tensor) -> None:
    model = small("llama", attention_bias=True, mlp_bias=True)
    with applied(model, tokens, chosen(name)) as handle:
        found = check_model(model, handle, weights_of(model, handle), tokens[0, :12])
    assert found["relative_logits_error"] <= found["bound"] < 1e-3
    assert found["top1_agreement"] == 1.0
    assert 0 <= found["kl_nats"] < 1e-8
    assert found["sites"]["masks_differ_share"] < 1e-3
    if name not in ("cats", "teal") and "threshold" not in name:
        assert found["achieved_sparsity"]["h1"] == 0.5


@pytest.mark.parametrize("name", ["magnitude", "layer", "int8", "wina", "threshold", "wina, threshold"])
def test_the_gate_is_green_in_bfloat16(name: str, tokens: Tensor) -> None:
    from test_decode import SMALL

    from conftest import build_model

    model = build_model("qwen2", dtype=torch.bfloat16, **SMALL)
    with applied(model, tokens, chosen(name)) as handle:
        found = check_model(model, handle, weights_of(model, handle), tokens[0, :12])
    assert found["sites"]["masks_differ_share"] < 0.02
    assert found["kl_nats"] < 0.2


@pytest.mark.parametrize("site", ["h1", "h2", "h3", "h4"])
def test_a_broken_weight_is_red(site: str, tokens: Tensor) -> None:
    model = small()
    with applied(model, tokens, chosen("magnitude")) as handle:
        weights = weights_of(model, handle)
        weights.layers[1].matrices[site][3] *= 1.5
        with pytest.raises(ParityError, match="level 0"):
            check_model(model, handle, weights, tokens[0, :8])
        with pytest.raises(ParityError, match=f"layer 1, {site}: .*product"):  # found by the site alone
            check_model(model, handle, weights, tokens[0, :8], kappa=[1e6])


def test_a_wrong_level_is_red(tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    with applied(model, tokens, chosen("magnitude")) as handle:
        weights = weights_of(model, handle)
        less = level_selectors(weights.shape, 0.45)
        monkeypatch.setattr("larosa.decode.parity_model.selectors_of", lambda _: less)
        with pytest.raises(ParityError, match="not within a unit"):
            check_model(model, handle, weights, tokens[0, :8])


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("more", [{}, {"adapters": 1}, {"adapters": 2}, {"transforms": "int8"}], ids=str)
def test_random_weights_pass_the_plain_gate(kind: str, more: dict[str, object]) -> None:
    weights = random(kind, **more)
    for level in (0.0, 0.5, 0.9):
        found = check_plain(weights, level_selectors(weights.shape, level))
        assert found["relative_logits_error"] <= found["bound"] < 0.3
        assert found["achieved_sparsity"]["h1"] == pytest.approx(level, abs=0.02)
    thresholds = {
        site: (SiteSelector(own[0].k, threshold=0.1),) * 2 for site, own in level_selectors(weights.shape, 0.5).items()
    }
    check_plain(weights, thresholds)


ON_GPU = torch.cuda.is_available()
TOKENS = 8 if ON_GPU else 1
SCALE = 2 if ON_GPU else 1  # a program owns 16 outputs or a KV head, and the interpreter runs one after the other
INTERPRETED = {
    **SHAPE,
    "hidden_size": 32 * SCALE,
    "intermediate_size": 24 * SCALE,
    "num_attention_heads": 2 * SCALE,
    "num_key_value_heads": SCALE,
    "num_hidden_layers": 2,
}


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs programs one after another, and attention's are slow."""
    if not ON_GPU:
        module = importlib.import_module("larosa_kernels.ops.decode_attention.api")
        monkeypatch.setattr(module, "default_attention", lambda *_: AttentionConfig(1, 16, 1, True))


@pytest.mark.parametrize(
    ("kind", "layers", "more"),
    [
        ("qwen3", 1, {"transforms": "int8"}),
        ("llama", 1, {"adapters": 2}),
        pytest.param("llama", 2, {"adapters": 2}, marks=pytest.mark.slow),  # 10 s of CPU more
    ],
    ids=str,
)
@pytest.mark.usefixtures("few_programs")
def test_one_launch_a_site_has_the_bits_of_the_watched_step(kind: str, layers: int, more: dict[str, Any]) -> None:
    """Triton's interpreter here, a graph on a GPU: check_plain wants equal logits from both."""
    device = torch.device("cuda" if ON_GPU else "cpu")
    own = {"head_dim": 32, "attention_bias": True} if kind == "qwen3" else {}
    config = AutoConfig.for_model(kind, **INTERPRETED, **own)
    weights = random_weights(config, torch.bfloat16, device, 0, layers, **more)
    found = check_plain(weights, level_selectors(weights.shape, 0.5), tokens=TOKENS, backend="triton")
    assert found["bit_identical"]
    assert found["achieved_sparsity"]["h4"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("layout", [None, "linear"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.usefixtures("few_programs")
def test_a_step_keeps_what_it_read_and_picks_what_comes(dtype: torch.dtype, layout: str | None, backend: str) -> None:
    """Sparse and dense; in a graph on a GPU."""
    device = torch.device("cuda" if ON_GPU else "cpu")
    config = AutoConfig.for_model("llama", **{**INTERPRETED, "vocab_size": 3001})
    weights = random_weights(config, dtype, device, 0, layers=1)
    how: dict[str, Any] = {"batch": 2, "backend": backend}
    if layout is None:
        decoder = Decoder(
            weights, level_selectors(weights.shape, 0.5 if ON_GPU else 0.0), 5, **how
        )  # searches are slow
    else:
        decoder = DenseDecoder(weights, layout, 5, transposed(weights), **how)
    decoder.tokens.fill_(-7)
    decoder.place(2)
    read = torch.tensor([3, 2999], device=device)
    wanted, logits = decoder.tokens.clone(), decoder.step(read)
    last = 4 if ON_GPU else 3
    for at in range(2, last + 1):
        wanted[:, at], read = read, logits.double().argmax(-1)
        assert torch.equal(decoder.tokens, wanted)
        assert torch.equal(decoder.token, read)
        assert decoder.position.tolist() == [decoder.length] == [at + 1]
        if at < last:
            logits = decoder.advance()
    assert len(set(wanted[:, 2:].flatten().tolist())) > 3  # else it shows little


@pytest.mark.usefixtures("few_programs")
def test_one_launch_a_site_with_limits_and_gates() -> None:
    device = torch.device("cuda" if ON_GPU else "cpu")
    weights = random_weights(AutoConfig.for_model("qwen2", **INTERPRETED), torch.bfloat16, device, 0, layers=1)
    small = {"h1": 0.1, "h2": 0.01, "h3": 0.1, "h4": 0.002}
    thresholds = {site: (SiteSelector(weights.shape.sites[site].width, threshold=own),) for site, own in small.items()}
    gate = SiteSelector(weights.shape.sites["h4"].width, threshold=0.02, gated=True)
    for selectors in (thresholds, {**thresholds, "h4": (gate,)}):
        found = check_plain(weights, selectors, tokens=TOKENS, backend="triton")
        assert 0.02 < found["achieved_sparsity"]["h4"] < 0.98


def test_the_plain_gate_is_red_on_wrong_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random(dtype=torch.float32)
    selectors = level_selectors(weights.shape, 0.5)
    check_plain(weights, selectors)
    select, gemv, attend = ops.topk_select, ops.sparse_gemv, ops.decode_attention
    with monkeypatch.context() as patch:
        patch.setattr(ops, "topk_select", lambda x, k, *a, **b: select(x, k - 1, *a, **b))
        with pytest.raises(ParityError, match="mask"):
            check_plain(weights, selectors)
    with monkeypatch.context() as patch:
        patch.setattr(ops, "sparse_gemv", lambda *a, **b: gemv(*a, **b) * 1.001)
        with pytest.raises(ParityError, match="product"):
            check_plain(weights, selectors)
    with monkeypatch.context() as patch:
        patch.setattr(ops, "decode_attention", lambda *a, **b: attend(*a, **b) * 1.01)
        with pytest.raises(ParityError, match="logits"):
            check_plain(weights, selectors)


def test_the_plain_gate_is_red_on_a_wrong_gate_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random(dtype=torch.float32)
    shape = weights.shape
    own = SiteSelector(shape.sites["h4"].width, threshold=0.02, gated=True)
    selectors = {**level_selectors(shape, 0.0), "h4": (own,) * shape.layers}
    found = check_plain(weights, selectors)
    assert 0.02 < found["achieved_sparsity"]["h4"] < 0.98
    swiglu = ops.swiglu_topk
    for other in (0.01, 0.04):
        wrong = torch.tensor([ops.threshold_bits(other, torch.float32), -1], dtype=torch.int32)
        with monkeypatch.context() as patch:
            patch.setattr(ops, "swiglu_topk", lambda g, k, t, b, p, _gate, how, w=wrong: swiglu(g, k, t, b, p, w, how))
            with pytest.raises(ParityError, match="the neurons are not those"):
                check_plain(weights, selectors)
