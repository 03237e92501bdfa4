"""Which tokens are sparsified.

All sites of a model share one policy object. A hook before the decoder sets the mask of the current tokens, per thread;
`all` needs neither mask nor hook. Positions and fractions count real tokens: padding is read from the attention mask,
two-dimensional as callers pass it, or four-dimensional as `generate` makes it for a static cache.

Within the model's `generate` the policy knows where the prompt ends, so that generation with and without a KV cache,
and with draft tokens, makes the same tokens sparse. A forward pass outside `generate` is a prompt where the cache is
empty.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from larosa.config.run import TokenPolicyConfig
from larosa.errors import LarosaError

PROMPT_KINDS = ("last_fraction", "decode_only")
"""Kinds that must know where the prompt ends."""


class TokenPolicyError(LarosaError):
    """The policy cannot tell which tokens to make sparse."""


class _Pass(threading.local):
    """State of a thread's forward pass."""

    mask: Tensor | None = None
    prompt: int | None = None
    """Columns of the prompt, padding included, within `generate`."""


class TokenPolicy:
    """The mask of sparse tokens of the thread's current forward pass, or None where every token is sparse."""

    def __init__(self, config: TokenPolicyConfig) -> None:
        self.config = config
        self._pass = _Pass()
        self._everywhere = False

    @property
    def mask(self) -> Tensor | None:
        """[B, T] bool."""
        return self._pass.mask

    @contextmanager
    def everywhere(self) -> Iterator[None]:
        """Within: every token is sparse, under any policy."""
        self._everywhere, self._pass.mask = True, None
        try:
            yield
        finally:
            self._everywhere = False

    def hook(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the decoder (`with_kwargs=True`)."""
        if self._everywhere:
            self._pass.mask = None
            return
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens is None:
            tokens = kwargs["inputs_embeds"]
        cache = kwargs.get("past_key_values")
        prompt = self._pass.prompt
        if self.config.kind == "decode_only" and prompt is None and cache is None and kwargs.get("use_cache") is False:
            raise TokenPolicyError(
                "token_policy=decode_only recognises generated tokens by the KV cache: call model.generate(), or "
                "pass a cache"
            )
        offset = int(cache.get_seq_length()) if cache is not None else 0
        batch, length = tokens.shape[:2]
        padding = real_tokens(kwargs.get("attention_mask"), offset + length)
        self._pass.mask = self.sparse_tokens(batch, length, offset, padding, prompt).to(tokens.device)

    def generating(self, generate: Callable[..., Any], settings: Any) -> Callable[..., Any]:
        """A model's `generate` within which the policy knows the prompt. settings: its generation_config."""

        def told(*args: Any, **kwargs: Any) -> Any:
            inputs = [args[0] if args else None, *(kwargs.get(name) for name in ("inputs", "input_ids"))]
            given = next((one for one in [*inputs, kwargs.get("inputs_embeds")] if one is not None), None)
            generation_config = kwargs.get("generation_config") or settings
            if kwargs.get("prefill_chunk_size") or getattr(generation_config, "prefill_chunk_size", None):
                raise TokenPolicyError(
                    f"tokens={self.config.kind} must see the prompt at once: generate without prefill_chunk_size"
                )
            self._pass.prompt = 1 if given is None else int(given.shape[1])
            try:
                return generate(*args, **kwargs)
            finally:
                self._pass.prompt = None

        return told

    def sparse_tokens(
        self, batch: int, length: int, offset: int, padding: Tensor | None, prompt: int | None = None
    ) -> Tensor:
        """[batch, length] bool for the tokens at positions offset ... offset + length - 1.

        `padding` [batch, offset + length], nonzero at real tokens; None: all are real. `prompt`: its columns, padding
        included; None: all of a pass that begins at offset 0.
        """
        real = torch.ones(batch, offset + length) if padding is None else padding[:, : offset + length].cpu()
        position = real.cumsum(-1)[:, offset:] - 1
        if prompt is None:
            prompt = length if offset == 0 else 0
        match self.config.kind:
            case "skip_first_n":
                return position >= self.config.n
            case "last_fraction":
                total = real[:, :prompt].sum(-1, keepdim=True)
                sparse = (total * self.config.fraction).ceil()
                return position >= total - sparse
            case "decode_only":
                return (torch.arange(offset, offset + length) >= prompt).expand(batch, length)
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
                "positions cannot be read off a sliding-window mask; use token_policy=all or no StaticCache"
            )
        mask = mask["full_attention"]
        if mask is None:
            return None
    if mask.dim() == 4:
        last = mask[:, 0, -1, :length]
        mask = last if last.dtype == torch.bool else last == 0
    real: Tensor = mask.float()
    return real
