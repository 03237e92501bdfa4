"""Latency of every kernel at the shapes of LLaMA2-7B and LLaMA3-8B, batch 1, beside cuBLAS.

    PYTHONPATH=kernels python -m larosa_kernels.benchmarks.op_latency --json rows.json  # parity check first
    PYTHONPATH=kernels python -m larosa_kernels.benchmarks.op_latency --tune            # other launch shapes too

Needs a CUDA GPU, torch, triton and numpy. Weights of 8 layers take turns inside one CUDA graph, so that L2 stays cold.
A row's bytes are what the op must read: selected weight rows, or its vectors, or the cache.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from larosa_kernels import decode_attention, fused_sparse_gemv, rmsnorm_topk, topk_select
from larosa_kernels.benchmarks.parity import attention_inputs, parity_errors, range_around
from larosa_kernels.benchmarks.rows import Recorder, table
from larosa_kernels.benchmarks.shapes import CONTEXT, EPS, HEAD_WIDTH, HEADS, LAYERS, PROJECTIONS, WIDTHS
from larosa_kernels.common.environment import environment, write_record
from larosa_kernels.common.gemv import GemvConfig
from larosa_kernels.common.search_config import SearchConfig, default_search
from larosa_kernels.ops.decode_attention.workspace import AttentionConfig, default_attention
from larosa_kernels.ops.sparse_gemv.config import launch_config
from larosa_kernels.ops.topk_select.reference import topk_select_reference


def search_configs(n: int, every: bool) -> list[SearchConfig]:
    """The default, and with `every` its alternatives."""
    if not every:
        return [default_search(n)]
    tried = [SearchConfig(warps) for warps in (4, 8, 16) if n // warps <= 2048]
    return list(dict.fromkeys([default_search(n), *tried, SearchConfig(8, packed=False)]))


def time_select(recorder: Recorder, model: str, n: int, every: bool) -> None:
    """`topk_select` of half the entries: both tie rules, with and without a search_range of 64 patterns."""
    xs = [recorder.normal(1, n) for _ in range(LAYERS)]
    near = range_around(topk_select_reference(xs[0], n // 2), 64)
    for config, ties, search_range in itertools.product(search_configs(n, every), ("strict", "keep"), (None, near)):
        name = (
            f"{ties}{'' if search_range is None else ' search_range'} warps={config.num_warps} packed={config.packed}"
        )
        calls = [partial(topk_select, x, n // 2, ties, search_range, config=config) for x in xs]
        recorder.time("select", model, "-", name, (n, 1), 0.5, 2 * n, calls, 8)


def time_selections(recorder: Recorder, every: bool) -> None:
    """A no-op's place in a graph, then the search at each width once."""
    recorder.time("no-op", "-", "-", "1-element fill", (1, 1), 0, 0, [torch.zeros(1, device="cuda").zero_], 64)
    for model, n in {n: (model, n) for model, widths in WIDTHS.items() for n in widths}.values():
        time_select(recorder, model, n, every)


def site_calls(recorder: Recorder, model: str, site: str) -> Callable[[GemvConfig, float], list[Callable[[], Tensor]]]:
    """What a decoder launches for a site, on the weights of LAYERS layers, by launch shape and level."""
    n, m = PROJECTIONS[model, site]
    around: dict[str, Any] = {"norm": recorder.normal(n), "eps": EPS} if site in ("qkv", "gate+up") else {}
    around |= {"residual": recorder.normal(1, m)} if site in ("o", "down") else {}
    around |= {"swiglu": site == "gate+up"}
    xs = [recorder.normal(1, n) for _ in range(LAYERS)]
    weights = [recorder.normal(n, m) for _ in range(LAYERS)]
    z = rmsnorm_topk(xs[0], around["norm"], EPS, n)[0] if "norm" in around else xs[0]

    def calls(config: GemvConfig, level: float) -> list[Callable[[], Tensor]]:
        k = max(1, round(n * (1 - level)))
        search_range = range_around(topk_select_reference(z, k), 64) if k < n else None
        pairs = zip(xs, weights, strict=True)
        return [
            partial(fused_sparse_gemv, x, weight, k, search_range=search_range, config=config, **around)
            for x, weight in pairs
        ]

    return calls


def time_site(recorder: Recorder, model: str, site: str) -> None:
    """cuBLAS alone, and the whole site in one launch by level; tune_gemv tries other launch shapes."""
    n, m = PROJECTIONS[model, site]
    x, outputs = recorder.normal(1, n), m // 2 if site == "gate+up" else m
    dense = [partial(linear, x, recorder.normal(m, n)) for _ in range(LAYERS)]
    recorder.time("dense", model, site, "cuBLAS linear, nothing else", (n, m), 0, 2 * n * m, dense)
    del dense
    calls = site_calls(recorder, model, site)
    for level in (0, 0.25, 0.4, 0.5, 0.6, 0.75):
        k = max(1, round(n * (1 - level)))
        config = launch_config(outputs, torch.empty(n, m, dtype=recorder.dtype, device="meta"), k)
        recorder.time("site", model, site, str(config), (n, m), level, 2 * k * m, calls(config, level))


def time_attention(recorder: Recorder, model: str, every: bool) -> None:
    """`decode_attention` at a full context beside torch's attention, which neither rotates nor appends."""
    kv, per = HEADS[model]
    inputs = [attention_inputs(recorder, model) for _ in range(LAYERS)]
    shape, read = (CONTEXT, kv * per), 2 * 2 * kv * CONTEXT * HEAD_WIDTH
    configs = [default_attention(1, kv, per)]
    if every:
        for splits, tile, warps in itertools.product((4, 8, 16, 32), (32, 64, 128), (4, 8, 16)):
            configs += [each for each in [AttentionConfig(splits, tile, warps, per > 1)] if each.combines_lightly(per)]
    for config in configs:
        calls = [partial(decode_attention, *given, config=config) for given in inputs]
        recorder.time("attend", model, "-", str(config), shape, 0, read, calls, 4)
    q = recorder.normal(1, kv * per, 1, HEAD_WIDTH)
    torchs = [partial(scaled_dot_product_attention, q, given[3], given[4], enable_gqa=True) for given in inputs]
    recorder.time("attend", model, "-", "torch SDPA, no rotary, no append", shape, 0, read, torchs, 4)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument(
        "--tune", action="store_true", help="time other ways to search and attend, too; products: tune_gemv"
    )
    parser.add_argument("--ops", default="select,gemv,attend", help="groups to time: select, gemv, attend")
    parser.add_argument("--only", default="", help="products whose `model site` contains this")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    return parser.parse_args()


def main() -> int:
    """Check parity, measure, write, print."""
    options = parse()
    if not torch.cuda.is_available():
        print("no CUDA GPU: this benchmark measures nothing without one", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    recorder = Recorder(getattr(torch, options.dtype))
    ops = options.ops.split(",")
    every_search = options.tune and "select" in ops
    failed = parity_errors(recorder, {n: search_configs(n, every_search) for widths in WIDTHS.values() for n in widths})
    if failed:
        print("WRONG, nothing is timed:", *failed, sep="\n  ", file=sys.stderr)
        return 1
    print(f"correct at all shapes ({options.dtype})", flush=True)
    if "select" in ops:
        time_selections(recorder, options.tune)
    for model, site in PROJECTIONS:
        if "gemv" in ops and options.only in f"{model} {site}":
            time_site(recorder, model, site)
    for model in HEADS:
        if "attend" in ops:
            time_attention(recorder, model, options.tune)
    place = environment(torch.device("cuda"))
    if options.json:
        write_record(options.json, place | {"rows": [asdict(row) for row in recorder.rows]})
    print(place)
    print(table(recorder.rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
