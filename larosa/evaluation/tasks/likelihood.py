"""Log-likelihoods of continuations in plain torch, as lm-eval's wrapper of transformers takes them.

Requests that share all but the last token of their text run once (the letters of MMLU's choices). Texts run in
batches of falling length, padded on the right, where a causal model does not see the padding. Log-probabilities are
taken in float32 also of a bf16 or fp16 model, whose own softmax makes ties; the head runs on the continuations alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.models.architecture import ModelView
from larosa.models.finite import require_finite
from larosa.models.inputs import check_ids

Tokens = tuple[int, ...]
_ROWS = 512
"""Scores computed at a time: a row is as long as the vocabulary."""


@torch.no_grad()
def likelihoods(
    model: PreTrainedModel, requests: Sequence[tuple[Tokens, Tokens]], batch_size: int
) -> list[tuple[float, bool]]:
    """For each (context, continuation): nats of the continuation, and whether every token of it is the likeliest.

    No context and no continuation may be empty. Raises EvaluationError where the model's logits are not finite,
    InputError where the tokens are not the model's to read.
    """
    shared: dict[Tokens, list[int]] = {}
    for index, (context, continuation) in enumerate(requests):
        shared.setdefault(context + continuation[:-1], []).append(index)
    texts = sorted(shared, key=lambda text: (-len(text), text))
    for tokens in [*texts, *((continuation[-1],) for _, continuation in requests)]:
        check_ids(torch.tensor(tokens), model.config)
    by_request: dict[int, tuple[float, bool]] = {}
    view, largest = ModelView(model), torch.promote_types(model.dtype, torch.float32)
    with tqdm(total=len(texts), desc="log-likelihoods", unit="text", leave=False) as bar:
        for start in range(0, len(texts), batch_size):
            batch = texts[start : start + batch_size]
            ids = pad_sequence([torch.tensor(text) for text in batch], batch_first=True)
            hidden = view.decoder(input_ids=ids.to(view.embedding.weight.device), use_cache=False).last_hidden_state
            asked = [[(index, requests[index][1]) for index in shared[text]] for text in batch]
            for chunk in _chunks([max(len(continuation) for _, continuation in each) for each in asked]):
                rows = [hidden[i, len(batch[i]) - longest : len(batch[i])] for i, longest in chunk]
                logits = require_finite(view.head(torch.cat(rows)), "log-likelihoods")
                scores = logits.log_softmax(-1, dtype=largest)
                ends = zip(chunk, accumulate(longest for _, longest in chunk), strict=True)
                by_request |= _likelihoods(scores, [(end, *request) for (i, _), end in ends for request in asked[i]])
            bar.update(len(batch))
    return [by_request[index] for index in range(len(requests))]


def _chunks(rows: list[int]) -> Iterator[list[tuple[int, int]]]:
    """Texts by number, with their rows, together up to _ROWS of them."""
    chunk: list[tuple[int, int]] = []
    for i, count in enumerate(rows):
        if chunk and sum(taken for _, taken in chunk) + count > _ROWS:
            yield chunk
            chunk = []
        chunk.append((i, count))
    yield chunk


def _likelihoods(scores: Tensor, asked: list[tuple[int, int, Tokens]]) -> dict[int, tuple[float, bool]]:
    """scores: [rows, vocabulary], log-probabilities; asked: the row behind a continuation's last, its number, its
    tokens. The GPU is waited for once, not once a continuation."""
    rows = [end - len(continuation) + i for end, _, continuation in asked for i in range(len(continuation))]
    place = torch.tensor(rows, device=scores.device)
    token = torch.tensor([one for _, _, continuation in asked for one in continuation], device=scores.device)
    nats, likeliest = scores[place, token].tolist(), (scores.argmax(-1)[place] == token).tolist()
    by_request, start = {}, 0
    for _, index, continuation in asked:
        end = start + len(continuation)
        by_request[index] = math.fsum(nats[start:end]), all(likeliest[start:end])
        start = end
    return by_request
