"""Which tokens are made sparse.

A policy is one object that all sites of a model share. A hook before the decoder sets the mask of the tokens
at hand; `all` needs neither mask nor hook. Positions and fractions count real tokens: padding is read off the
attention mask, in the two-dimensional form that callers pass or the four-dimensional one that `generate` makes
for a static cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from larosa.config import TokenPolicyConfig
from larosa.errors import LarosaError


class TokenPolicyError(LarosaError):
    """The policy cannot tell which tokens to make sparse."""


class TokenPolicy:
    """The mask of sparse tokens of the current forward pass, or None where every token is sparse."""

    def __init__(self, config: TokenPolicyConfig) -> None:
        self.config = config
        self.mask: Tensor | None = None
        self._everywhere = False

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        """Within: every token is sparse, whatever the policy says."""
        self._everywhere, self.mask = True, None
        try:
            yield
        finally:
            self._everywhere = False

    def hook(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the decoder (`with_kwargs=True`)."""
        if self._everywhere:
            return
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens is None:
            tokens = kwargs["inputs_embeds"]
        cache = kwargs.get("past_key_values")
        if self.config.kind == "decode_only" and cache is None and kwargs.get("use_cache") is False:
            raise TokenPolicyError("tokens=decode_only tells generated tokens by the KV cache: generate with one")
        offset = int(cache.get_seq_length()) if cache is not None else 0
        batch, length = tokens.shape[:2]
        padding = real_tokens(kwargs.get("attention_mask"), offset + length)
        self.mask = self.sparse_tokens(batch, length, offset, padding).to(tokens.device)

    def sparse_tokens(self, batch: int, length: int, offset: int, padding: Tensor | None) -> Tensor:
        """[batch, length] bool for the tokens at positions offset ... offset + length - 1.

        `padding` [batch, offset + length], nonzero at real tokens; None: all are real.
        """
        real = torch.ones(batch, offset + length) if padding is None else padding[:, : offset + length].cpu()
        position = real.cumsum(-1)[:, offset:] - 1
        match self.config.kind:
            case "skip_first_n":
                return position >= self.config.n
            case "last_fraction" if offset == 0:
                total = real.sum(-1, keepdim=True)
                sparse = (total * self.config.fraction).ceil()
                return position >= total - sparse
            case "decode_only":
                return torch.full((batch, length), offset > 0)
            case _:
                return torch.ones(batch, length, dtype=torch.bool)


def real_tokens(mask: Any, length: int) -> Tensor | None:
    """[batch, length], nonzero at real tokens, from an attention mask of any form; None if there is no mask.

    Of a prepared mask [batch, 1, queries, keys] (True or 0 where attended) the last query sees every real token,
    unless a sliding window hides the older ones: of a model with both, the full-attention mask is taken, and a
    mask that is only a window raises TokenPolicyError.
    """
    if mask is None:
        return None
    if isinstance(mask, dict):
        if "full_attention" not in mask:
            raise TokenPolicyError(
                "positions cannot be read off a sliding-window mask; use tokens=all or no StaticCache"
            )
        mask = mask["full_attention"]
        if mask is None:
            return None
    if mask.dim() == 4:
        last = mask[:, 0, -1, :length]
        mask = last if last.dtype == torch.bool else last == 0
    real: Tensor = mask.float()
    return real
