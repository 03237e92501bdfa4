"""TEAL's released product beside this one: same shapes, same fp16 inputs, same threshold, in one process.

    git clone https://github.com/FasterDecoding/TEAL
    PYTHONPATH=kernels python -m larosa_kernels.benchmarks.teal --teal TEAL --json rows.json

Their kernel masks its loads and adds up with fp16 atomics; its launch shape is autotuned anew for every level, as in
their code. Ours takes the same threshold and nothing else: no norm, selection, SwiGLU or residual. The output of both
is checked against float64 first. Weights of 8 layers take turns inside one CUDA graph, so that L2 stays cold.
Needs a CUDA GPU, torch, triton and numpy.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from larosa_kernels import fused_sparse_gemv
from larosa_kernels.benchmarks.rows import Recorder, table
from larosa_kernels.benchmarks.shapes import LAYERS, PROJECTIONS
from larosa_kernels.common.environment import environment, write_record

LEVELS = (0.0, 0.25, 0.4, 0.5, 0.75)
BOUND = {"teal": 2e-2, "larosa": 2e-3}
"""Largest error allowed, relative to the largest output: theirs rounds to fp16 at every one of its partial sums."""


def released(folder: Path) -> Callable[..., Tensor]:
    """`splitk_sparse_gemv` of a checkout of TEAL."""
    path = folder / "kernels" / "sparse_gemv.py"
    if not path.is_file():
        raise SystemExit(f"--teal {folder}: expected a checkout of FasterDecoding/TEAL with {path.relative_to(folder)}")
    # Their classes for torch.compile stand in the same file and want a package that is not needed here.
    sys.modules.setdefault("compile_wrapper", types.SimpleNamespace(BaseKernel=object))  # type: ignore[arg-type]
    spec = importlib.util.spec_from_file_location("teal_sparse_gemv", path)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.splitk_sparse_gemv  # type: ignore[no-any-return]


def check(name: str, y: Tensor, x: Tensor, weight: Tensor, threshold: float) -> None:
    """Raise SystemExit unless the product is right."""
    wanted = torch.where(x.abs() > threshold, x, 0).double() @ weight.double()
    error = float((y.double() - wanted).abs().max() / wanted.abs().max())
    if not error <= BOUND[name]:
        raise SystemExit(f"{name} is wrong by {error:.1e} at {list(weight.shape)}: nothing is timed")


def time_site(recorder: Recorder, teal: Callable[..., Tensor], model: str, site: str) -> None:
    """cuBLAS, then both kernels at every level."""
    n, m = PROJECTIONS[model, site]
    xs, weights = ([recorder.normal(*shape) for _ in range(LAYERS)] for shape in ((1, n), (n, m)))
    weights = [weight / n**0.5 for weight in weights]
    pairs = list(zip(xs, weights, strict=True))
    recorder.time("dense", model, site, "cuBLAS", (n, m), 0, 2 * n * m, [partial(linear, x, w.T) for x, w in pairs])
    for level in LEVELS:
        threshold = float(xs[0].abs().float().quantile(level)) if level else -1.0
        threshold = float(torch.tensor(threshold, dtype=recorder.dtype))
        bits = int(torch.tensor(threshold, dtype=recorder.dtype).view(torch.int16)) & 0x7FFF if level else 0
        given = torch.tensor([bits, -1 if level else n], dtype=torch.int32, device="cuda")
        read = 2 * m * sum(int((x.abs() > threshold).sum()) for x in xs) // LAYERS
        binned = round(100 * level)
        theirs = [partial(teal, x[None], w.T, threshold, binned) for x, w in pairs]
        ours = [partial(fused_sparse_gemv, x, w, threshold=given) for x, w in pairs]
        check("teal", theirs[0]()[0], *pairs[0], threshold)
        check("larosa", ours[0](), *pairs[0], threshold)
        recorder.time("teal", model, site, "masked loads, atomics", (n, m), level, read, theirs)
        recorder.time("site", model, site, "threshold given", (n, m), level, read, ours)


def main() -> None:
    """Check, measure, write, print."""
    parser = argparse.ArgumentParser(description="TEAL's released product beside this one.")
    parser.add_argument("--teal", type=Path, required=True, help="a checkout of FasterDecoding/TEAL")
    parser.add_argument("--model", default="LLaMA2-7B", choices=sorted({model for model, _ in PROJECTIONS}))
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU: this benchmark measures nothing without one")
    torch.manual_seed(0)
    recorder, teal = Recorder(torch.float16), released(options.teal)
    for model, site in PROJECTIONS:
        if model == options.model:
            time_site(recorder, teal, model, site)
    place = environment(torch.device("cuda"))
    if options.json:
        write_record(options.json, place | {"rows": [asdict(row) for row in recorder.rows]})
    print(place)
    print(table(recorder.rows))


if __name__ == "__main__":
    main()
