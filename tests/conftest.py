"""Tiny random models of every architecture, with gammas and biases that are not trivial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import composing
import hydra
import hypothesis
import pytest
import torch
from tasks import byte_model, byte_tokenizer, wheel_of_rows  # noqa: F401  # fixtures of task scores
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from larosa.models.precision import keep_float64

hypothesis.settings.register_profile("suite", deadline=None)  # the machine may be busy
hypothesis.settings.load_profile("suite")
hydra.compose = composing.compose  # before larosa.cli.command takes it from there

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"

SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 384,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def build_model(
    kind: str, dtype: torch.dtype = torch.float64, tied: bool = False, seed: int = 0, **more: Any
) -> PreTrainedModel:
    """A tiny model with gammas in [0.5, 1.5] and biases of 0.1 sigma."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**SHAPE, "tie_word_embeddings": tied, **more})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if "norm" in name:
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator, dtype=torch.float64))
        elif name.endswith("bias"):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        elif "embed" in name:
            parameter.mul_(20)
        else:
            parameter.mul_(5)
    return keep_float64(model) if dtype == torch.float64 else model


@pytest.fixture
def tokens() -> torch.Tensor:
    """[4, 32] token ids."""
    return torch.randint(2, 384, (4, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    return build_model
