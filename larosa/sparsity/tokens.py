"""Which tokens are made sparse.

A policy is one object that all sites of a model share. A hook before the decoder sets the mask of the tokens
at hand; `all` needs neither mask nor hook.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from larosa.config import TokenPolicyConfig


class TokenPolicy:
    """The mask of sparse tokens of the current forward pass, or None where every token is sparse."""

    def __init__(self, config: TokenPolicyConfig) -> None:
        self.config = config
        self.mask: Tensor | None = None

    def hook(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the decoder (`with_kwargs=True`)."""
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens is None:
            tokens = kwargs["inputs_embeds"]
        cache = kwargs.get("past_key_values")
        offset = int(cache.get_seq_length()) if cache is not None else 0
        padding = kwargs.get("attention_mask")
        if padding is not None and padding.dim() != 2:
            padding = None
        self.mask = self.sparse_tokens(tokens.shape[0], tokens.shape[1], offset, padding).to(tokens.device)

    def sparse_tokens(self, batch: int, length: int, offset: int, padding: Tensor | None) -> Tensor:
        """[batch, length] bool for the tokens at positions offset ... offset + length - 1.

        `padding` [batch, offset + length], 1 at real tokens, as transformers passes it; positions and
        fractions count real tokens only.
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
