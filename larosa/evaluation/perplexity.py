"""Perplexity: exp of the mean negative log-likelihood per predicted token, over disjoint blocks.

Each block of T tokens predicts T - 1 of them; likelihoods are summed in float64 from float32 logits. The
standard error is that of the mean over blocks, carried through the exponential.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.models.architecture import ModelView
from larosa.models.finite import EvaluationError as EvaluationError
from larosa.models.finite import require_finite
from larosa.models.inputs import check_ids


@torch.no_grad()
def perplexity(model: PreTrainedModel, ids: Tensor, batch_size: int, label: str) -> dict[str, Any]:
    """ids: [N, T] int64. Returns perplexity, its standard error, tokens and the NLL (nats) of every block.

    Raises EvaluationError where the model's logits or their likelihood are not finite, InputError where the model
    cannot read the ids.
    """
    check_ids(ids, model.config)
    view = ModelView(model)
    device = view.embedding.weight.device
    block_nll: list[float] = []
    for batch in tqdm(torch.split(ids, batch_size), desc=label, unit="batch", leave=False):
        hidden = view.decoder(input_ids=batch.to(device), use_cache=False).last_hidden_state
        for row, tokens in zip(hidden, batch, strict=True):
            logits = require_finite(view.head(row[:-1]), label).float()
            nll = torch.nn.functional.cross_entropy(logits, tokens[1:].to(logits.device), reduction="none")
            block_nll.append(float(nll.double().sum()))
    predicted = ids.shape[1] - 1
    mean = sum(block_nll) / (len(block_nll) * predicted)
    if not mean < 700:  # exp would overflow
        raise EvaluationError(f"{label}: the perplexity is not finite (mean {mean} nats); check the weights")
    spread = torch.tensor(block_nll, dtype=torch.float64).div(predicted)
    error = float(spread.std() / math.sqrt(len(spread))) if len(spread) > 1 else None
    value = math.exp(mean)
    return {
        "perplexity": value,
        "standard_error": None if error is None else value * error,
        "predicted_tokens": predicted * len(block_nll),
        "tokens": ids.numel(),
        "block_length": ids.shape[1],
        "block_nll_nats": block_nll,
    }
