"""Time the decoder with random weights at a model's true shape, for :mod:`larosa.decode.benchmark`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
import yaml
from larosa_kernels.common.environment import environment
from transformers import AutoConfig

from larosa.decode.benchmark import OVERHEADS, SCHEMES
from larosa.decode.calibrate import kth_bits, with_search_ranges, with_thresholds
from larosa.decode.decoder import Decoder
from larosa.decode.parity import check_plain
from larosa.decode.selectors import Selectors, cut, level_selectors
from larosa.decode.timing import Row, compare, prefill_rows
from larosa.decode.weights import DecodeWeights, random_weights
from larosa.records.packaged import packaged

SCHEMA = 2
CALIBRATION_TOKENS = 16


@torch.no_grad()
def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The record of these options: parity checks, then times. Raises LarosaError."""
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, options.dtype)
    config = shape_of(options.model)
    weights = random_weights(config, dtype, device, options.seed, options.layers, **OVERHEADS[options.overhead])
    weights = weights.rounded(SCHEMES[options.quantization], options.head_w8, options.adapters_w8)
    record: dict[str, Any] = {"schema": SCHEMA, "kind": "decode", "model": options.model, "weights": "random"}
    record |= environment(device) | {
        "dtype": options.dtype,
        "overhead": options.overhead,
        "layers": len(weights.layers),
    }
    record |= {"quantization": options.quantization, "head": "w8" if options.head_w8 else "none"}
    record |= {"adapters": "w8" if options.adapters_w8 else "none"}
    record |= {"seed": options.seed, "levels": options.levels, "parity": {}, "rows": [], "selection_us": {}}
    if options.prefill:
        record["prefill"] = prefill_rows(weights.bare(), options.prefill, options.repeats, backend=options.backend)
    for context in options.contexts:
        plans = plans_of(weights, context, options)
        record["parity"][str(context)] = check_parity(weights, plans, options)
        rows = compare(weights, plans, [context], options.new_tokens, options.repeats, backend=options.backend)
        record["rows"] += rows
        record["selection_us"][str(context)] = selection_us(rows, 4 * len(weights.layers))
    return record


def shape_of(model: str) -> Any:
    """The transformers configuration that conf/model/NAME.yaml describes."""
    every = {each.stem: yaml.safe_load(each.read_text()) for each in (packaged("conf") / "model").glob("*.yaml")}
    shapes = {name: settings["shape"] for name, settings in every.items() if settings["shape"] is not None}
    if model not in shapes:
        raise SystemExit(f"--model {model}: expected one of {', '.join(sorted(shapes))}")
    return AutoConfig.for_model(**shapes[model])


def plans_of(weights: DecodeWeights, context: int, options: argparse.Namespace) -> dict[str, Selectors]:
    """Name -> selectors: Top-K at every level, and thresholds where asked for, both calibrated behind `context`
    tokens."""
    plans: dict[str, Selectors] = {}
    for level in options.levels:
        selectors, name = level_selectors(weights.shape, level, options.ties), f"top-k {100 * level:g} %"
        if level == 0 or (options.no_search_range and not options.thresholds):
            plans[name] = selectors
            continue
        decoder = Decoder(weights, selectors, context + CALIBRATION_TOKENS, backend=options.backend, graph=False)
        decoder.cache.normal_()
        draw = torch.Generator().manual_seed(options.seed)
        ids = torch.randint(len(weights.embedding), (CALIBRATION_TOKENS,), generator=draw)
        bits = kth_bits(decoder, ids, context)
        plans[name] = selectors if options.no_search_range else with_search_ranges(selectors, bits)
        if options.thresholds:
            plans[f"thresholds {100 * level:g} %"] = with_thresholds(selectors, bits, weights.dtype)
    return plans


def check_parity(weights: DecodeWeights, plans: dict[str, Selectors], options: argparse.Namespace) -> dict[str, Any]:
    """Every plan on the first layers, against float64 torch. Raises ParityError."""
    few = min(options.parity_layers, len(weights.layers))
    reports = {}
    for name, selectors in plans.items():
        reports[name] = check_plain(weights.first(few), cut(selectors, few), seed=options.seed, backend=options.backend)
        print(
            f"parity check, {name}: logits within {reports[name]['relative_logits_error']:.1e} of float64",
            file=sys.stderr,
        )
    return reports


def selection_us(rows: list[Row], sites: int) -> dict[str, float]:
    """Level -> microseconds of one exact selection: the step with Top-K less the step with thresholds, per site."""
    timed = {row["name"]: row["ms_per_token"]["p50"] for row in reversed(rows)}
    pairs = {name: name.replace("thresholds", "top-k") for name in timed if name.startswith("thresholds")}
    return {top: 1000 * (timed[top] - timed[thresholds]) / sites for thresholds, top in pairs.items()}
