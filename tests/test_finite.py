"""No score without finite logits: every path from a model to a number refuses NaN and infinity."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from made_records import made
from transformers import PreTrainedModel

from conftest import build_model
from larosa.api.sparsify import LaRoSAConfig, sparsify
from larosa.errors import ParityError
from larosa.evaluation import parity
from larosa.evaluation.perplexity import perplexity
from larosa.evaluation.tasks.likelihood import likelihoods
from larosa.evaluation.tasks.wrapper import callable_of
from larosa.experiment import summary
from larosa.models.architecture import ModelView
from larosa.models.finite import EvaluationError
from larosa.search.curves import layer_error
from larosa.search.divergence import divergence
from larosa_analysis.records.entry import Entry, RecordsError

IDS = torch.arange(2, 34)[None]
RUNS: dict[str, Callable[[PreTrainedModel], object]] = {
    "perplexity": lambda model: perplexity(model, IDS, 1, "sample"),
    "log-likelihoods": lambda model: likelihoods(model, [((2, 3), (4, 5))], 1),
    "a batch of lm-eval": lambda model: callable_of(model)(IDS),
    "a generated token": lambda model: callable_of(model).generate(IDS, max_new_tokens=2, pad_token_id=0),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_logits_that_are_not_finite_are_refused(run: str, value: float) -> None:
    model = build_model("llama", dtype=torch.float32)
    RUNS[run](model)
    ModelView(model).head.weight.data[300] = value  # a token that no text asks for
    with pytest.raises(EvaluationError, match=f"{run}.*check the weights|sample: .*check the weights"):
        RUNS[run](model)


def overflowing() -> PreTrainedModel:
    """Finite weights, activations beyond float16."""
    model = build_model("llama", dtype=torch.float16)
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data.fill_(600.0)
        layer.mlp.up_proj.weight.data.fill_(60.0)
    return model


def test_an_overflow_in_float16_names_the_dtype() -> None:
    for run in RUNS.values():
        with pytest.raises(EvaluationError, match="float16 overflows"):
            run(overflowing())
    with pytest.raises(EvaluationError, match="dense model's logits hold NaN or infinity: float16 overflows"):
        parity.reference(overflowing(), IDS)


def test_the_dense_model_is_checked_first_and_its_bad_weight_named() -> None:
    model = build_model("qwen2", dtype=torch.float32)
    model.model.layers[3].self_attn.k_proj.weight.data[1, 2] = float("nan")
    with pytest.raises(EvaluationError, match=r"weight model\.layers\.3\.self_attn\.k_proj\.weight does too"):
        parity.reference(model, IDS)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_transformation_that_breaks_a_sound_model_is_named(dtype: torch.dtype, tokens: torch.Tensor) -> None:
    model = build_model("llama", dtype=dtype)
    dense = parity.reference(model, tokens)
    advice = "float16 overflows" if dtype == torch.float16 else "check the weights"
    with sparsify(model, tokens, LaRoSAConfig(sparsity=0.4)) as handle:
        model.model.layers[1].mlp.up_proj.weight.data[5] = float("inf")
        with pytest.raises(ParityError, match=f"hold NaN or infinity, the dense model's do not: {advice}"):
            parity.check(model, handle, dense)


def test_errors_of_search_are_finite() -> None:
    good = torch.ones(1, 2, 48)
    assert layer_error(good, good) == 0.0
    with pytest.raises(EvaluationError, match="error of a layer's output is nan"):
        layer_error(good * float("nan"), good)
    model = build_model("llama", dtype=torch.float32)
    hidden = torch.full((2, 48), float("nan"))
    with pytest.raises(EvaluationError, match="KL divergence"):
        divergence(ModelView(model), torch.zeros(2, 384), hidden)


def test_a_table_never_shows_nan_as_a_number() -> None:
    assert summary.texts_of({"ppl x": float("nan"), "increase x": float("inf")}, ["ppl x", "increase x"]) == ["NaN"] * 2


def test_records_with_nan_reach_no_table() -> None:
    record = made("larosa")
    record["metrics"]["perplexity"]["wikitext2"]["block_nll_nats"][3] = float("nan")
    with pytest.raises(RecordsError, match="likelihoods on wikitext2 are not finite"):
        Entry.of(record)
