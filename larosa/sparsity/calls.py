"""What a sparse model's forward pass is given: refused where the answer would be wrong, or an error of torch's."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from larosa.models.inputs import InputError, check_ids
from larosa.sparsity.guard import SparseModelError

log = logging.getLogger(__name__)


class CallCheck:
    """A forward pre-hook of a sparse model's decoder (`with_kwargs=True`).

    `rotated`: the residual stream is in a basis of its own; `frozen` says whether parameters that took gradients are
    replaced by constants; `remedy` how to get the dense model. Raises SparseModelError and InputError.
    """

    def __init__(
        self, config: PretrainedConfig, rotated: bool, frozen: Callable[[], bool], remedy: Callable[[], str]
    ) -> None:
        self._config, self._rotated, self._frozen, self._remedy = config, rotated, frozen, remedy
        self._warned = False

    def __call__(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at the call's arguments."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            raise SparseModelError(
                f"a trace would keep this input's choice of entries for every input; {self._remedy()}"
            )
        if self._rotated:
            self._check_basis(kwargs)
        if ids is not None:
            cache = kwargs.get("past_key_values")
            check_ids(ids, self._config, int(cache.get_seq_length()) if cache is not None else 0)
        if torch.is_grad_enabled():
            self._check_gradients(decoder)

    def _check_basis(self, kwargs: dict[str, Any]) -> None:
        if kwargs.get("inputs_embeds") is not None:
            raise InputError(
                "inputs_embeds are in the model's own basis, and the absorbed form reads rotated ones: pass input_ids, "
                "or make the model sparse in the simulated form"
            )
        asked = kwargs.get("output_hidden_states")
        asked = getattr(self._config, "output_hidden_states", False) if asked is None else asked
        if asked not in (None, False):
            raise InputError(
                "output_hidden_states would give the rotated basis of the absorbed form, not the model's own: make the "
                "model sparse in the simulated form, whose hidden states are in the model's basis"
            )

    def _check_gradients(self, decoder: nn.Module) -> None:
        if not (decoder.training or not self._warned) or not self._frozen():
            return
        if decoder.training:
            raise SparseModelError(
                "the model is in training mode, but its transformed weights take no gradient: call model.eval() to "
                f"run it sparse (plain and simulated forms can be trained); to train the dense model, {self._remedy()}"
            )
        self._warned = True
        log.warning(
            "gradients are enabled, but the transformed weights of a sparse model take none (plain and simulated forms "
            "keep the model's own weights): run it under torch.no_grad()"
        )
