"""Decode speed of the evaluated model: the decoder takes its weights, must agree with it, and only then is timed."""

from __future__ import annotations

import logging
from typing import Any

import torch
from larosa_kernels.common.checks import INTERPRETED
from torch import Tensor
from transformers import PreTrainedModel

from larosa.config.run import SpeedConfig
from larosa.decode.calibrate import kth_bits, with_search_ranges
from larosa.decode.decoder import Decoder
from larosa.decode.from_model import weights_of
from larosa.decode.parity_model import check_model
from larosa.decode.prefill import prefill
from larosa.decode.selectors import Selectors, selectors_of
from larosa.decode.timing import Row, compare
from larosa.decode.weights import DecodeWeights
from larosa.sparsity.handle import SparsityHandle

log = logging.getLogger(__name__)

_SEARCH_RANGE_TOKENS = 16


@torch.no_grad()
def speed(
    model: PreTrainedModel,
    handle: SparsityHandle,
    prompt: Tensor,
    kappa: list[float],
    config: SpeedConfig,
    backend: str = "auto",
) -> dict[str, Any]:
    """The parity check's findings, a row for every decoder and length, and a summary at the first length.

    `caveat` says why the times are no speed of the product's, see :func:`caveat`; None on its kernels and a GPU.
    prompt: [T] ids, for the parity check, for search ranges and to fill the cache; kappa: the dense model's. Raises
    ParityError.
    """
    weights = weights_of(model, handle)
    parity = check_model(model, handle, weights, prompt[: config.parity_tokens], kappa, backend=backend)
    selectors, label = selectors_of(handle), handle.plan.method.preset
    plans = (
        {} if handle.plan.method.name == "dense" else {label: _with_search_ranges(weights, selectors, prompt, backend)}
    )
    rows = compare(weights, plans, config.contexts, config.new_tokens, config.repeats, prompt, backend=backend)
    doubt = caveat(parity["backend"], weights.device.type)
    if doubt is not None:
        log.warning("the times are those of the %s", doubt)
    return {"backend": parity["backend"], "caveat": doubt, "parity": parity, "rows": rows, "summary": _summary(rows)}


def caveat(backend: str, device: str) -> str | None:
    """What ran instead of compiled kernels on a GPU, for every place where the times stand; None if they did.

    backend: `triton` or `reference`; device: torch's type of the weights' device.
    """
    where = {"cuda": "GPU", "cpu": "CPU"}.get(device, device)
    if backend != "triton":
        return f"torch reference on {where}, not a speed measurement"
    if INTERPRETED:
        return "Triton interpreter (TRITON_INTERPRET=1), not a speed measurement"
    return None


def _with_search_ranges(weights: DecodeWeights, selectors: Selectors, prompt: Tensor, backend: str) -> Selectors:
    tokens = min(_SEARCH_RANGE_TOKENS, len(prompt) // 2)
    decoder = Decoder(weights, selectors, len(prompt), backend=backend, graph=False)
    prefill(decoder, prompt[None, :-tokens])
    return with_search_ranges(selectors, kth_bits(decoder, prompt[-tokens:], len(prompt) - tokens))


def _summary(rows: list[Row]) -> dict[str, dict[str, float]]:
    """`dense` (the fastest) and the method, at the first context and output length; numbers for W&B and the table."""
    first = [row for row in rows if all(row[key] == rows[0][key] for key in ("context", "new_tokens"))]
    dense = [row for row in first if row["kind"] == "dense"]
    chosen = {"dense": max(dense, key=lambda row: float(row["tokens_per_s"]))}
    chosen.update(("sparse", row) for row in first if row["kind"] == "sparse")
    return {
        name: {
            "tokens_per_s": row["tokens_per_s"],
            "ms_per_token_p50": row["ms_per_token"]["p50"],
            "speedup": row["speedup"],
        }
        for name, row in chosen.items()
    }
