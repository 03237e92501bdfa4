"""One launch a case of the sparse product between the profiler's marks: what Nsight Compute should look at.

    PYTHONPATH=kernels ncu --clock-control none --profile-from-start off --set full -k regex:gemv -o REPORT \
        python -m larosa_kernels.benchmarks.profile_gemv --model LLaMA3-8B --sites gate+up,down --weights bf16,w8,w4
    ncu --import REPORT.ncu-rep --page details       # shares of peak, warps, stalls
    ncu --import REPORT.ncu-rep --page source --csv  # samples and stalls of every instruction

Random weights; every case at level 0, and at half of the entries by a threshold. Kernels are compiled before the
first mark. Needs a CUDA GPU with counters, torch, triton and numpy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from larosa_kernels import bound_from_threshold, fused_sparse_gemv
from larosa_kernels.benchmarks.shapes import PROJECTIONS
from larosa_kernels.benchmarks.site_inputs import FORMATS, inputs

_MEDIAN = 0.6745
"""Of the magnitude of a standard normal number."""


def cases(model: str, site: str, weight_format: str) -> list[Callable[[], Tensor]]:
    """The site's product at level 0, then with half of the entries."""
    x, weight, around = inputs(model, site, weight_format)
    half = around | {"threshold": bound_from_threshold(_MEDIAN, torch.bfloat16, "cuda")}
    return [partial(fused_sparse_gemv, x, weight, **given) for given in (around, half)]


def main() -> None:
    """Compile, mark, run."""
    parser = argparse.ArgumentParser(description="Launches of the sparse product for Nsight Compute.")
    parser.add_argument("--model", default="LLaMA3-8B", choices=sorted({model for model, _ in PROJECTIONS}))
    parser.add_argument("--sites", default="gate+up", help="qkv, gate+up, down, with commas")
    parser.add_argument("--weights", default=",".join(FORMATS), help="bf16, w8, w4, with commas")
    options = parser.parse_args()
    sites, formats = options.sites.split(","), options.weights.split(",")
    if unknown := [site for site in sites if (options.model, site) not in PROJECTIONS]:
        parser.error(
            f"--sites {unknown[0]}: expected one of {[site for name, site in PROJECTIONS if name == options.model]}"
        )
    if unknown := [each for each in formats if each not in FORMATS]:
        parser.error(f"--weights {unknown[0]}: expected one of {', '.join(FORMATS)}")
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU: there are no counters to read")
    torch.manual_seed(0)
    launches = [
        launch for site in sites for weight_format in formats for launch in cases(options.model, site, weight_format)
    ]
    for launch in launches:
        launch()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
    for launch in launches:
        launch()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
