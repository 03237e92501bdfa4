"""Time of a decode step: dense and every level in one process, the same harness for all.

A row is one decoder at one context and output length: ms a token as p20, p50, p80 over single graph replays with
warm-up discarded, tokens per second, bytes read and the share of the datasheet's bandwidth that they make.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from larosa.decode.decoder import Decoder
from larosa.decode.dense import LAYOUTS, DenseDecoder, transposed
from larosa.decode.errors import DecodeError
from larosa.decode.matrix import dense
from larosa.decode.prefill import prefill
from larosa.decode.selectors import Selectors, dense_selectors
from larosa.decode.traffic import kept_fractions, peak_bandwidth, step_bytes
from larosa.decode.weights import DecodeWeights

Row = dict[str, Any]
_WARM_UP = 8
_REALISED_STEPS = 4


def measure(decoder: Decoder, context: int = 1024, new_tokens: int = 64, repeats: int = 5) -> Row:
    """Time `new_tokens` steps after `context` tokens, `repeats` times; the cache is read as it stands."""
    if context + new_tokens > decoder.max_len:
        raise DecodeError(f"context={context} and {new_tokens} new tokens exceed max_len={decoder.max_len}")
    decoder.place(context)
    shares = kept_fractions(decoder, min(_REALISED_STEPS, new_tokens))
    decoder.place(context)
    for _ in range(min(_WARM_UP, new_tokens)):
        decoder.advance()
    times = np.concatenate([_times_ms(decoder, context, new_tokens) for _ in range(repeats)])
    p20, p50, p80 = (float(each) for each in np.percentile(times, (20, 50, 80)))
    read = step_bytes(decoder, context + new_tokens // 2, shares)
    peak = peak_bandwidth(decoder.weights.device)
    return {
        "backend": decoder.backend,
        "graph": decoder.graphed,
        "batch": decoder.batch,
        "context": context,
        "new_tokens": new_tokens,
        "repeats": repeats,
        "ms_per_token": {"p20": p20, "p50": p50, "p80": p80, "mean": float(times.mean())},
        "tokens_per_s": decoder.batch * 1000.0 / p50,
        "kept_share": {site: sum(by_layer) / len(by_layer) for site, by_layer in shares.items()},
        "read_bytes": read,
        "read_bytes_per_s": read["total"] / p50 * 1000.0,
        "share_of_peak": None if peak is None else read["total"] / p50 * 1000.0 / peak,
    }


def _times_ms(decoder: Decoder, context: int, new_tokens: int) -> np.ndarray[Any, Any]:
    """Milliseconds of each step; on a GPU between events in its stream, queued ahead."""
    decoder.place(context)
    if decoder.weights.device.type != "cuda":
        marks = [time.perf_counter()]
        for _ in range(new_tokens):
            decoder.advance()
            marks.append(time.perf_counter())
        return np.diff(marks) * 1000.0
    events = [_event() for _ in range(new_tokens + 1)]
    torch.cuda.synchronize()
    events[0].record()
    for event in events[1:]:
        decoder.advance()
        event.record()
    torch.cuda.synchronize()
    return np.array([before.elapsed_time(after) for before, after in pairwise(events)])


@torch.no_grad()
def prefill_rows(weights: DecodeWeights, lengths: Iterable[int], repeats: int = 5, **how: Any) -> list[Row]:
    """Milliseconds of a dense prompt at batch 1, with the decoder's input-major copy and with the usual [out, in] one.

    One warm-up is not counted; `how` goes to the decoders, which run without a graph here.
    """
    lengths = list(lengths)
    draw = torch.Generator().manual_seed(0)
    rows: list[Row] = []
    for layout in ("input_major", "output_major"):
        stored = weights if layout == "input_major" else _output_major(weights)
        decoder = Decoder(stored, dense_selectors(stored.shape), max(lengths), **how, graph=False)
        for length in lengths:
            ids = torch.randint(len(weights.embedding), (1, length), generator=draw)
            call = partial(prefill, decoder, ids, "dense")
            times = [_seconds(call, weights) for _ in range(repeats + 1)][1:]
            p20, p50, p80 = (1000.0 * float(each) for each in np.percentile(times, (20, 50, 80)))
            rows.append(
                {
                    "layout": layout,
                    "tokens": length,
                    "repeats": repeats,
                    "ms": {"p20": p20, "p50": p50, "p80": p80},
                    "tokens_per_s": 1000.0 * length / p50,
                }
            )
    return rows


def _output_major(weights: DecodeWeights) -> DecodeWeights:
    """The same matrices, stored [out, in] and seen as [in, out]."""
    layers = (
        replace(layer, matrices={s: dense(m, weights.dtype).T.contiguous().T for s, m in layer.matrices.items()})
        for layer in weights.layers
    )
    return replace(weights, layers=tuple(layers))


def _seconds(call: Callable[[], object], weights: DecodeWeights) -> float:
    """Wall time of a call that fills the GPU, waiting for it on both sides."""
    on_gpu = weights.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def compare(
    weights: DecodeWeights,
    plans: dict[str, Selectors],
    contexts: Iterable[int] = (1024,),
    outputs: Iterable[int] = (64,),
    repeats: int = 5,
    prompt: Tensor | None = None,
    **how: Any,
) -> list[Row]:
    """Rows of dense by cuBLAS, dense by the sparse kernels, and every plan, at every context and output length.

    Dense rows run without the method's overhead, and unquantised if the weights are quantised: a row of the kind
    `quantised` is the dense model on quantised weights. `speedup` is over the fastest dense row of the same lengths.
    The cache holds `prompt` [T], repeated as often as needed, or noise; `how` goes to the decoders.
    """
    sizes = [(context, new) for context in contexts for new in outputs]
    longest = max(context + new for context, new in sizes)
    rows: list[Row] = []

    def add(name: str, kind: str, decoder: Decoder) -> None:
        _fill(decoder, prompt, max(context for context, _ in sizes))
        for context, new in sizes:
            rows.append({"name": name, "kind": kind} | measure(decoder, context, new, repeats))

    bare = weights.bare().dequantised()
    second = transposed(bare)
    for layout in LAYOUTS:
        copy = None if layout == "input_major" else second
        add(f"dense, torch {layout}", "dense", DenseDecoder(bare, layout, longest, copy, **how))
    del second, copy
    add("dense, sparse kernels", "dense", Decoder(bare, dense_selectors(weights.shape), longest, **how))
    del bare
    if weights.packed:
        quantised = Decoder(weights.bare(), dense_selectors(weights.shape), longest, **how)
        add("quantised dense, sparse kernels", "quantised", quantised)
    for name, selectors in plans.items():
        add(name, "sparse", Decoder(weights, selectors, longest, **how))
    return with_speedups(rows)


def _fill(decoder: Decoder, prompt: Tensor | None, length: int) -> None:
    if prompt is None:
        decoder.cache.normal_()
        return
    long_enough = prompt.repeat(-(-length // len(prompt)))[:length]
    prefill(decoder, long_enough.expand(decoder.batch, -1))


def with_speedups(rows: list[Row]) -> list[Row]:
    """The rows with `speedup` over the fastest dense row of the same context and output length."""
    for row in rows:
        same = [
            other
            for other in rows
            if other["kind"] == "dense" and all(other[key] == row[key] for key in ("context", "new_tokens", "batch"))
        ]
        best = min(same, key=lambda other: float(other["ms_per_token"]["p50"]))
        row["best_dense"] = best["name"]
        row["speedup"] = best["ms_per_token"]["p50"] / row["ms_per_token"]["p50"]
    return rows
