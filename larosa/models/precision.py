"""Precision of computing: norms that keep float64, and float32 products in TF32.

transformers' RMSNorms compute in float32 whatever the model's dtype, so a float64 model is only exact to 1e-7,
and a rotated one differs from it by as much. `torch.nn.RMSNorm` computes in the dtype it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from larosa.models.architecture import ModelView, norm_epsilon


def keep_float64(model: PreTrainedModel) -> PreTrainedModel:
    """Replace the norms of a float64 model by `torch.nn.RMSNorm` with the same weights, in place; returns it.

    All of one class are replaced: those of the sites, the last one, and those of queries and keys. Raises
    ArchitectureError for an architecture that is not in the table, whose norms may mean something else.
    """
    kind = type(ModelView(model).final_norm)
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm) is kind and kind is not nn.RMSNorm:
                weight = norm.get_parameter("weight")
                exact = nn.RMSNorm(weight.shape[0], eps=norm_epsilon(norm), device=weight.device, dtype=weight.dtype)
                exact.weight = weight
                setattr(parent, name, exact)
    return model


@contextmanager
def float32_matmul(precision: Literal["highest", "tf32"]) -> Iterator[None]:
    """Within: float32 products in float32, or with operands rounded to TF32 where the GPU has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
