"""Layers that a calibrated quantiser rounded are kept on disk, by what they were rounded from."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from test_methods import applied
from test_quantization import cache, config  # noqa: F401  # a fixture
from test_schedule import method
from torch import Tensor

from conftest import SHAPE, build_model
from larosa.models.architecture import LayerView
from larosa.quantization import external
from larosa.quantization.apply import quantise


def test_a_layer_is_rounded_once_for_all_that_leave_it_alike(
    tokens: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another level or method on the same weights, and a run that was stopped, find it; other settings do not."""
    rounded = external._rounded_layer
    indices: list[int] = []

    def counted(layer: LayerView, *more: Any) -> dict[str, Tensor]:
        indices.append(layer.index)
        if len(indices) == stop:
            raise KeyboardInterrupt
        return rounded(layer, *more)

    def rounds(name: str, choice: str = "w4_gptq_out", sparsity: float = 0.3, seed: int = 0, **more: Any) -> Any:
        indices.clear()
        model = build_model("llama", dtype=torch.float32, seed=seed)
        with applied(model, tokens, method(name), sparsity=sparsity) as handle:
            first = tokens if more.get("sequences") is None else tokens[: more["sequences"]]
            quantise(model, handle, config(choice, **more), first)
            return {key: (own.qweight, own.scale) for key, own in handle.quantised.items()}

    monkeypatch.setattr(external, "_rounded_layer", counted)
    stop, layers = 2, SHAPE["num_hidden_layers"]
    with pytest.raises(KeyboardInterrupt):
        rounds("magnitude")
    stop = 0
    whole = rounds("magnitude")
    assert indices == list(range(1, layers))  # layer 0 was kept
    again = rounds("magnitude", sparsity=0.6)
    dense = rounds("dense", sparsity=0.0)
    assert not indices
    for key, (codes, scale) in whole.items():
        for other in (again, dense):
            assert torch.equal(other[key][0], codes)
            assert torch.equal(other[key][1], scale)
    for change in (
        {"choice": "w8_gptq"},
        {"attention_sink_weight": 3.0},
        {"sequences": 1},
        {"seed": 1},
        {"name": "larosa/paper"},
    ):
        rounds(**{"name": "magnitude", **change})
        assert indices == list(range(layers)), change
    for kept in (tmp_path / "calibration").glob("quantised-*.safetensors"):
        kept.write_bytes(kept.read_bytes()[:-8])
    rounds("dense", sparsity=0.0)
    assert indices == list(range(layers))  # damaged files are not read


def test_what_a_layer_was_given_is_forgotten_before_the_next_one(
    tokens: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing is rounded because the cache has it."""
    seen, held, alive = external._seen, list[weakref.ref[Tensor]](), list[int]()

    def watched(layer: LayerView, inputs: Any) -> dict[str, list[Tensor]]:
        alive.append(sum(own() is not None for own in held))
        found = seen(layer, inputs)
        held.extend(weakref.ref(x) for rows in found.values() for x in rows)
        return found

    monkeypatch.setattr(external, "_seen", watched)
    for _ in range(2):
        held.clear()
        with applied(build_model("llama", dtype=torch.float32), tokens, method("magnitude")) as handle:
            quantise(handle._model, handle, config("w8_gptq"), tokens)
    assert alive == [0] * 2 * SHAPE["num_hidden_layers"]
