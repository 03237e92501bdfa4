"""Launch shapes of a site's product: bf16 with all rows under a mask or a list of the selected, quantised with splits.

    PYTHONPATH=kernels python -m larosa_kernels.benchmarks.tune_gemv --model LLaMA3-8B --sites gate+up --weights w8,w4

Compiles in many processes, the present shape first and then as many others as the time allows; holds each against the
reference, then times it in a CUDA graph over copies of the weights that L2 does not hold. Needs a CUDA GPU, torch,
triton and numpy.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor
from triton.errors import TritonError

from larosa_kernels import fused_sparse_gemv, rmsnorm_topk
from larosa_kernels.benchmarks.parity import range_around
from larosa_kernels.benchmarks.shapes import EPS, PROJECTIONS
from larosa_kernels.benchmarks.site_inputs import FORMATS, inputs
from larosa_kernels.common.gemv import GemvConfig
from larosa_kernels.common.timing import graph_latency
from larosa_kernels.ops.sparse_gemv.config import launch_config
from larosa_kernels.ops.sparse_gemv_quantised.config import TILE_BYTES
from larosa_kernels.ops.topk_select.reference import topk_select_reference

LEVELS = (0.0, 0.5, 0.75)
_BEYOND_L2 = 2.4e8
"""Bytes of weights that take turns."""
_OFF = 2.0**-7
"""Relative error of a right result at most: roundings of the norm and of the output, sums in another order."""


@dataclass(frozen=True)
class Case:
    """A site of a model on weights of a format."""

    model: str
    site: str
    weight_format: str

    @property
    def outputs(self) -> int:
        """Of one launch."""
        m = PROJECTIONS[self.model, self.site][1]
        return m // 2 if self.site == "gate+up" else m

    def present(self) -> GemvConfig:
        """The default shape where half of the rows are selected."""
        n, m = PROJECTIONS[self.model, self.site]
        dtype = {"bf16": torch.bfloat16, "w8": torch.int8, "w4": torch.uint8}[self.weight_format]
        weight = torch.empty(n, m // 2 if self.weight_format == "w4" else m, dtype=dtype, device="meta")
        return launch_config(self.outputs, weight, n // 2)

    def shapes(self) -> list[GemvConfig]:
        """The present one, then others."""
        default = self.present()
        if self.weight_format == "bf16":
            sizes = itertools.product((32, 64, 128, 16), (4, 8, 16, 2), (8, 16, 4))
            every = [(default.columns, default.unroll, default.num_warps), *sizes]
            shapes = [GemvConfig(*size, compact) for size in every for compact in (True, False)]
        else:
            blocks = -(
                -PROJECTIONS[self.model, self.site][1] // (TILE_BYTES * (2 if self.weight_format == "w4" else 1))
            )
            shapes = []
            for unroll, warps in itertools.product((4, 2), (8, 16, 4)):
                fitting = 2112 // warps // blocks  # 16 warps a multiprocessor
                splits = {max(1, fitting), max(1, fitting // 2)}
                shapes += [GemvConfig(default.columns, unroll, warps, True, each) for each in sorted(splits)]
        return list(dict.fromkeys([default, *shapes]))


class Inputs:
    """What a case's launches read. One copy of the weight, or as many as L2 does not hold."""

    def __init__(self, case: Case, copies: bool) -> None:
        torch.manual_seed(0)
        self.x, weight, self.around = inputs(case.model, case.site, case.weight_format)
        n, norm = self.x.shape[1], self.around.get("norm")
        z = self.x if norm is None else rmsnorm_topk(self.x, norm, EPS)[0]
        more = int(_BEYOND_L2 // (weight.numel() * weight.element_size())) + 1 if copies else 0
        self.weights = [weight, *(weight.clone() for _ in range(more))]
        self.rules: dict[float, dict[str, Any]] = {0.0: {}}
        for level in LEVELS[1:]:
            k = round(n * (1 - level))
            self.rules[level] = {"k": k, "search_range": range_around(topk_select_reference(z, k), 64)}
        self._expected: dict[float, Tensor] = {}

    def call(self, weight: Tensor, level: float, **how: Any) -> Tensor:
        """One launch."""
        return fused_sparse_gemv(self.x, weight, **self.around, **self.rules[level], **how)

    def right(self, shape: GemvConfig, level: float) -> bool:
        """Whether a shape gives what the reference gives."""
        if level not in self._expected:
            self._expected[level] = self.call(self.weights[0], level, backend="reference").float()
        wanted = self._expected[level]
        y = self.call(self.weights[0], level, config=shape).float()
        return bool((y - wanted).norm() <= _OFF * wanted.norm())

    def time(self, shape: GemvConfig, level: float) -> float:
        """Microseconds, median."""
        calls = [partial(self.call, weight, level, config=shape) for weight in self.weights]
        return graph_latency(calls, replays=7).p50_us


def jobs(cases: list[Case]) -> list[tuple[Case, GemvConfig]]:
    """All shapes of all cases, four of a case at a time, so that an early end leaves none out."""
    by_turn = [(i // 4, case, shape) for case in cases for i, shape in enumerate(case.shapes())]
    return [(case, shape) for _, case, shape in sorted(by_turn, key=lambda job: job[0])]


def compile_share(cases: list[Case], share: int, shares: int, until: float) -> list[tuple[Case, GemvConfig]]:
    """Launch every `shares`-th job once, so that the cache on disk holds it; returns those that can be launched."""
    launched, inputs_of, last = [], None, None
    for case, shape in itertools.islice(jobs(cases), share, None, shares):
        if time.time() > until:
            break
        if inputs_of is None or case != last:
            inputs_of, last = Inputs(case, copies=False), case
        try:
            for level in LEVELS[:2]:
                inputs_of.call(inputs_of.weights[0], level, config=shape)
            torch.cuda.synchronize()
            launched.append((case, shape))
        except (RuntimeError, ValueError, TritonError) as error:
            print(f"{case} {shape}: {error!r:.90}", flush=True)
    return launched


def timed(case: Case, shapes: list[GemvConfig], until: float) -> Iterator[tuple[GemvConfig, list[float]]]:
    """Shape, microseconds at LEVELS; wrong results are named instead."""
    inputs_of_case = Inputs(case, copies=True)
    for shape in shapes:
        if time.time() > until:
            return
        wrong = [level for level in LEVELS if not inputs_of_case.right(shape, level)]
        if wrong:
            print(f"WRONG {case} {shape} at {wrong}", flush=True)
        else:
            yield shape, [inputs_of_case.time(shape, level) for level in LEVELS]


def show(case: Case, timings: list[tuple[GemvConfig, list[float]]], most: int) -> None:
    """The present shape and the fastest at half of the entries."""
    print(f"{case.model} {case.site} {case.weight_format}: us at {', '.join(f'{100 * level:g} %' for level in LEVELS)}")
    fastest = sorted(timings, key=lambda timing: timing[1][1])[:most]
    present = case.present()
    for shape, us in dict.fromkeys((shape, tuple(us)) for shape, us in [*timings[:1], *fastest]):
        sizes = f"{shape.columns:4d} {shape.unroll:3d} {shape.num_warps:3d} {shape.splits:3d}"
        rows = "list" if shape.compact else "mask"
        print("  ", " ".join(f"{each:6.1f}" for each in us), sizes, rows, "(present)" * (shape == present), flush=True)


def main() -> int:
    """Compile, check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="LLaMA3-8B", choices=sorted({model for model, _ in PROJECTIONS}))
    parser.add_argument("--sites", default="qkv,o,gate+up,down", help="with commas")
    parser.add_argument("--weights", default="w8,w4", help="bf16, w8, w4, with commas")
    parser.add_argument("--seconds", type=float, default=120, help="for everything; two thirds of it to compile")
    parser.add_argument("--processes", type=int, default=15, help="that compile")
    parser.add_argument("--most", type=int, default=8, help="shapes shown of a case")
    options = parser.parse_args()
    cases = [
        Case(options.model, *each) for each in itertools.product(options.sites.split(","), options.weights.split(","))
    ]
    if unknown := [
        case for case in cases if (case.model, case.site) not in PROJECTIONS or case.weight_format not in FORMATS
    ]:
        parser.error(f"{unknown[0]}: there is {', '.join(f'{m} {s}' for m, s in PROJECTIONS)}, on {', '.join(FORMATS)}")
    if not torch.cuda.is_available():
        print("no CUDA GPU: this benchmark measures nothing without one", file=sys.stderr)
        return 2
    start = time.time()
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        until, shares = start + 2 / 3 * options.seconds, options.processes
        tasks = [pool.submit(compile_share, cases, share, shares, until) for share in range(shares)]
        compiled = {job for task in tasks for job in task.result()}
    print(
        f"{torch.cuda.get_device_name()}: {len(compiled)} of {len(jobs(cases))} shapes in {time.time() - start:.0f} s"
    )
    for case in cases:
        shapes = [shape for shape in case.shapes() if (case, shape) in compiled]
        show(case, list(timed(case, shapes, start + options.seconds)), options.most)
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
