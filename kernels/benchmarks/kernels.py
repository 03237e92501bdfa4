"""Latency of every kernel at the shapes of LLaMA2-7B and LLaMA3-8B, batch 1, beside cuBLAS.

    PYTHONPATH=kernels python kernels/benchmarks/kernels.py --json rows.json   # correctness first, then time
    PYTHONPATH=kernels python kernels/benchmarks/kernels.py --tune             # try launch shapes, print the best

Needs a CUDA GPU, torch, triton and numpy. Weights of 8 layers take turns inside one CUDA graph, so that L2 stays cold.
A row's bytes are what the op must read: kept weight rows, or its vectors, or the cache.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from correctness import attention_inputs, bracket_around, gate
from larosa_kernels import attend, norm_select, select, sparse_gemv, swiglu_select
from larosa_kernels.attend.workspace import AttendConfig, default_attend
from larosa_kernels.search_config import SearchConfig, default_search
from larosa_kernels.select.reference import select_reference
from larosa_kernels.sparse_gemv.config import GemvConfig, gemv_config
from larosa_kernels.timing import environment
from rows import CONTEXT, EPS, HEAD_WIDTH, HEADS, LAYERS, PROJECTIONS, WIDTHS, Bench, table
from torch.nn.functional import linear, scaled_dot_product_attention


def search_configs(n: int, every: bool) -> list[SearchConfig]:
    """The default, and with `every` its alternatives."""
    if not every:
        return [default_search(n)]
    tried = [SearchConfig(warps, ways) for warps in (1, 4, 8, 16) for ways in (1, 3) if n // warps <= 8192]
    return list(dict.fromkeys([default_search(n), *tried, SearchConfig(8, 3, packed=False)]))


def time_select(bench: Bench, model: str, n: int, every: bool) -> None:
    """`select` of half the entries: both tie rules, with and without a bracket of 64 patterns."""
    xs = [bench.normal(1, n) for _ in range(LAYERS)]
    near = bracket_around(select_reference(xs[0], n // 2), 64)
    for config, ties, bracket in itertools.product(search_configs(n, every), ("strict", "keep"), (None, near)):
        way = f"warps={config.num_warps} ways={config.ways} packed={config.packed}"
        name = f"{ties}{'' if bracket is None else ' bracket'} {way}"
        calls = [partial(select, x, n // 2, ties, bracket, config=config) for x in xs]
        bench.time("select", model, "-", name, (n, 1), 0.5, 2 * n, calls, 8)


def time_norm(bench: Bench, model: str, n: int) -> None:
    """`norm_select` of half the entries, and under a calibrated limit."""
    xs = [bench.normal(1, n) for _ in range(LAYERS)]
    gamma = bench.normal(n)
    found = norm_select(xs[0], gamma, EPS, n // 2)[1]
    for name, bracket in (("strict", None), ("strict bracket", bracket_around(found, 64))):
        calls = [partial(norm_select, x, gamma, EPS, n // 2, bracket=bracket) for x in xs]
        bench.time("norm_select", model, "-", name, (n, 1), 0.5, 4 * n, calls, 8)
    limited = [partial(norm_select, x, gamma, EPS, limit=found[0].contiguous()) for x in xs]
    bench.time("norm_select", model, "-", "limit", (n, 1), 0.5, 4 * n, limited, 8)


def time_swiglu(bench: Bench, model: str, n: int, every: bool) -> None:
    """`swiglu_select` of half the entries, in one program and in chunks, and under a calibrated limit."""
    pairs = [bench.normal(1, 2 * n) for _ in range(LAYERS)]
    found = swiglu_select(pairs[0], n // 2)[1]
    shapes = [(w, c) for w in (8, 16, 32) for c in (0, 256, 512, 1024)] if every else [(8, 0), (16, 0), (8, 512)]
    for (warps, chunk), bracket in itertools.product(shapes, (None, bracket_around(found, 64))):
        config = SearchConfig(warps, 3, True, chunk)
        calls = [partial(swiglu_select, pair, n // 2, bracket=bracket, config=config) for pair in pairs]
        name = f"strict{'' if bracket is None else ' bracket'} warps={warps} chunk={chunk}"
        bench.time("swiglu_select", model, "-", name, (n, 1), 0.5, 4 * n, calls, 8)
    limited = [partial(swiglu_select, pair, limit=found[0].contiguous()) for pair in pairs]
    bench.time("swiglu_select", model, "-", "limit", (n, 1), 0.5, 4 * n, limited, 8)


def time_selections(bench: Bench, every: bool) -> None:
    """A no-op's place in a graph, then the three selections at each width once."""
    bench.time("no-op", "-", "-", "1-element fill", (1, 1), 0, 0, [torch.zeros(1, device="cuda").zero_], 64)
    hidden: set[int] = set()
    for model, (narrow, wide) in WIDTHS.items():
        time_select(bench, model, wide, every)
        time_swiglu(bench, model, wide, every)
        if narrow not in hidden:
            hidden.add(narrow)
            time_select(bench, model, narrow, every)
            time_norm(bench, model, narrow)


def gemv_candidates() -> Iterator[GemvConfig]:
    """Launch shapes worth trying on a GPU with some 130 multiprocessors."""
    for columns, warps in ((512, 2), (256, 1), (1024, 4)):
        for rows, splits in itertools.product((4, 8, 16), (16, 32, 64)):
            yield GemvConfig(columns, rows, splits, warps)
    for splits, stages in itertools.product((8, 16, 32), (3, 4)):
        yield GemvConfig(64, 16, splits, 2, stages)
        yield GemvConfig(128, 16, splits, 4, stages)
    for splits in (8, 16, 32):
        yield GemvConfig(512, 32, splits, 8, 1, True)
        yield GemvConfig(256, 32, splits, 4, 1, True)


def time_product(bench: Bench, model: str, site: str, every: bool) -> None:
    """cuBLAS and the sparse product by level; with `every`, all launch shapes at 50 %."""
    n, m = PROJECTIONS[model, site]
    xs = [bench.normal(1, n) for _ in range(LAYERS)]
    weights = [bench.normal(n, m) for _ in range(LAYERS)]
    dense = [partial(linear, x, weight.t().contiguous()) for x, weight in zip(xs, weights, strict=True)]
    bench.time("dense", model, site, "cuBLAS linear", (n, m), 0, 2 * n * m, dense)
    del dense
    found: dict[GemvConfig, float] = {}
    configs = list(gemv_candidates()) if every else [gemv_config(n, m)]
    for config, level in itertools.product(configs, (0.5,) if every else (0, 0.25, 0.4, 0.5, 0.6, 0.75)):
        k = max(1, round(n * (1 - level)))
        calls = [
            partial(sparse_gemv, x, select(x, k), weight, config=config) for x, weight in zip(xs, weights, strict=True)
        ]
        found[config] = bench.time("sparse_gemv", model, site, str(config), (n, m), level, 2 * k * m, calls)
    if every:
        for config in sorted(found, key=found.__getitem__)[:4]:
            print(f"{model} {site} ({n}, {m}): {found[config]:.2f} us {config}", flush=True)


def time_attention(bench: Bench, model: str, every: bool) -> None:
    """`attend` at a full context beside torch's attention, which neither rotates nor appends."""
    kv, per = HEADS[model]
    inputs = [attention_inputs(bench, model) for _ in range(LAYERS)]
    shape, read = (CONTEXT, kv * per), 2 * 2 * kv * CONTEXT * HEAD_WIDTH
    configs = [default_attend(1, kv, per)]
    if every:
        for splits, tile, warps in itertools.product((4, 8, 16, 32), (32, 64, 128), (4, 8, 16)):
            configs += [way for way in [AttendConfig(splits, tile, warps, per > 1)] if way.combines_lightly(per)]
    for config in configs:
        calls = [partial(attend, *given, config=config) for given in inputs]
        bench.time("attend", model, "-", str(config), shape, 0, read, calls, 4)
    q = bench.normal(1, kv * per, 1, HEAD_WIDTH)
    torchs = [partial(scaled_dot_product_attention, q, given[3], given[4], enable_gqa=True) for given in inputs]
    bench.time("attend", model, "-", "torch SDPA, no rotary, no append", shape, 0, read, torchs, 4)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--tune", action="store_true", help="try all launch shapes")
    parser.add_argument("--ops", default="select,gemv,attend", help="groups to time: select, gemv, attend")
    parser.add_argument("--only", default="", help="products whose `model site` contains this")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    return parser.parse_args()


def main() -> int:
    """Gate, measure, write, print."""
    options = parse()
    if not torch.cuda.is_available():
        print("no CUDA GPU: this benchmark measures nothing without one", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    bench = Bench(getattr(torch, options.dtype))
    ops = options.ops.split(",")
    every_search = options.tune and "select" in ops
    failed = gate(bench, {n: search_configs(n, every_search) for widths in WIDTHS.values() for n in widths})
    if failed:
        print("WRONG, nothing is timed:", *failed, sep="\n  ", file=sys.stderr)
        return 1
    print(f"correct at all shapes ({options.dtype})", flush=True)
    if "select" in ops:
        time_selections(bench, options.tune)
    for model, site in PROJECTIONS:
        if "gemv" in ops and options.only in f"{model} {site}":
            time_product(bench, model, site, options.tune)
    for model in HEADS:
        if "attend" in ops:
            time_attention(bench, model, options.tune)
    if options.json:
        options.json.write_text(json.dumps([{**asdict(row), **environment()} for row in bench.rows], indent=1))
    print(environment())
    print(table(bench.rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
