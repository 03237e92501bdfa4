"""Log-likelihoods of continuations in plain torch, as lm-eval's wrapper of transformers takes them.

Requests that share all but the last token of their text run once (the letters of MMLU's choices). Texts run in
batches of falling length, padded on the right, where a causal model does not see the padding. Log-probabilities are
taken in float32 also of a bf16 or fp16 model, whose own softmax makes ties; the head runs on the continuations alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.architecture import ModelView

Tokens = tuple[int, ...]


@torch.no_grad()
def likelihoods(
    model: PreTrainedModel, requests: Sequence[tuple[Tokens, Tokens]], batch_size: int
) -> list[tuple[float, bool]]:
    """For each (context, continuation): nats of the continuation, and whether every token of it is the likeliest.

    No context and no continuation may be empty.
    """
    shared: dict[Tokens, list[int]] = {}
    for index, (context, continuation) in enumerate(requests):
        shared.setdefault(context + continuation[:-1], []).append(index)
    texts = sorted(shared, key=lambda text: (-len(text), text))
    found: dict[int, tuple[float, bool]] = {}
    view, largest = ModelView(model), torch.promote_types(model.dtype, torch.float32)
    with tqdm(total=len(texts), desc="log-likelihoods", unit="text", leave=False) as bar:
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            ids = pad_sequence([torch.tensor(text) for text in batch], batch_first=True)
            hidden = view.decoder(input_ids=ids.to(view.embedding.weight.device), use_cache=False).last_hidden_state
            for row, text in zip(hidden, batch, strict=True):
                own = [requests[index][1] for index in shared[text]]
                longest = max(map(len, own))
                scores = view.head(row[len(text) - longest : len(text)]).log_softmax(-1, dtype=largest)
                found |= zip(shared[text], (_likelihood(scores, continuation) for continuation in own), strict=True)
            bar.update(len(batch))
    return [found[index] for index in range(len(requests))]


def _likelihood(scores: Tensor, continuation: Tokens) -> tuple[float, bool]:
    """scores: [at least the continuation's tokens, vocabulary], log-probabilities that end where it ends."""
    ids = torch.tensor(continuation, device=scores.device)
    own = scores[len(scores) - len(ids) :]
    return float(own.gather(-1, ids[:, None]).sum()), bool((own.argmax(-1) == ids).all())
