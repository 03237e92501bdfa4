"""The end of a greedy decode step: the token read goes into the history, the argmax takes its place."""

from __future__ import annotations

from torch import Tensor


def greedy_sample_reference(logits: Tensor, token: Tensor, tokens: Tensor, position: Tensor) -> None:
    """logits: [B, V]; tokens: [B, L] takes token [B] at `position` [1]; position + 1; token: the largest logit's.

    Of equal logits the first one's; NaN counts as the largest.
    """
    tokens.index_copy_(1, position, token[:, None])
    position.add_(1)
    token.copy_(logits.argmax(-1))
