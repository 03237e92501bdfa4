"""Generation: the prompt at once, then token by token, greedy or sampled, without waiting for the host."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from larosa.decode.decoder import Decoder
from larosa.decode.errors import DecodeError
from larosa.decode.prefill import prefill

_LOOK_EVERY = 32


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. temperature 0 is greedy."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        top_k, top_p = 1 if self.top_k is None else self.top_k, 1.0 if self.top_p is None else self.top_p
        if not 0 <= self.temperature < float("inf") or top_k < 1 or not 0 < top_p <= 1:
            raise DecodeError(f"impossible sampling: {self}")


def draw(logits: Tensor, how: Sampling, generator: torch.Generator) -> Tensor:
    """One token [B] from logits [B, vocabulary], on their device."""
    scores = logits.float() / how.temperature
    if how.top_k is not None and how.top_k < scores.shape[1]:
        scores = scores.masked_fill(scores < scores.topk(how.top_k).values[:, -1:], float("-inf"))
    chances = scores.softmax(-1)
    if how.top_p is not None and how.top_p < 1:
        falling, order = chances.sort(stable=True, dim=-1, descending=True)
        falling = falling.masked_fill(falling.cumsum(-1) - falling >= how.top_p, 0)
        chances = torch.zeros_like(chances).scatter(-1, order, falling)
    # the smallest of exponential waiting times, which a multinomial draw is, without its look at the host
    waiting = torch.empty_like(chances).exponential_(generator=generator)
    return (chances / waiting).argmax(-1)


@torch.no_grad()
def generate(
    decoder: Decoder,
    ids: Tensor,
    new_tokens: int,
    sampling: Sampling | None = None,
    stop: int | None = None,
    mode: str = "sparse",
) -> Tensor:
    """The prompt ids [B, T] with up to `new_tokens` more, [B, T + n]; ends once every row has said `stop`.

    `mode`: how the prompt is read, see prefill. Raises DecodeError where the cache is too short.
    """
    length, how = ids.shape[1], sampling or Sampling()
    if length + new_tokens > decoder.max_len + 1:
        raise DecodeError(f"{length} + {new_tokens} tokens do not fit max_len={decoder.max_len}")
    generator = torch.Generator(decoder.weights.device).manual_seed(how.seed)
    logits = prefill(decoder, ids, mode)[:, -1]
    for made in range(1, new_tokens + 1):
        if how.temperature > 0:
            decoder.token.copy_(draw(logits, how, generator))
        elif made == 1:
            decoder.token.copy_(logits.argmax(-1))
        if made == new_tokens or made % _LOOK_EVERY == 0:
            decoder.tokens[:, length + made - 1] = decoder.token  # the next step would write it too
            if made == new_tokens or _ended(decoder.tokens[:, length : length + made], stop):
                break
        logits = decoder.advance()
    return _cut(decoder.tokens[:, : length + made].clone(), length, stop)


def _ended(made: Tensor, stop: int | None) -> bool:
    return stop is not None and bool(made.eq(stop).any(-1).all())


def _cut(tokens: Tensor, length: int, stop: int | None) -> Tensor:
    """Nothing after the last row's first `stop`; rows that stopped before repeat it."""
    if stop is None:
        return tokens
    stops = tokens[:, length:].eq(stop)
    said = stops.cumsum(-1)
    tokens[:, length:].masked_fill_(said - stops.long() > 0, stop)
    if not bool(said[:, -1].all()):
        return tokens
    first = (said == 0).sum(-1)
    return tokens[:, : length + int(first.max()) + 1]
