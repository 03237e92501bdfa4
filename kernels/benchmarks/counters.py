"""One launch a case of the sparse product between the profiler's marks: what Nsight Compute should look at.

    PYTHONPATH=kernels ncu --clock-control none --profile-from-start off --set full -k regex:gemv -o REPORT \
        python kernels/benchmarks/counters.py --model LLaMA3-8B --sites gate+up,down --weights bf16,w8,w4
    ncu --import REPORT.ncu-rep --page details       # shares of peak, warps, stalls
    ncu --import REPORT.ncu-rep --page source --csv  # samples and stalls of every instruction

Random weights; every case at level 0 and at half of the entries, by their limit. Kernels are compiled before the first
mark. Needs a CUDA GPU with counters, torch, triton and numpy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from larosa_kernels import limit_from_threshold, select_gemv
from larosa_kernels.ops.sparse_gemv_quantised.packing import GROUP, pack_codes, pack_scales
from rows import EPS, PROJECTIONS
from torch import Tensor

_MEDIAN = 0.6745
"""Of the magnitude of a standard normal number."""
KINDS = ("bf16", "w8", "w4")
"""Of weights."""


def made(kind: str, n: int, m: int, paired: bool = False) -> tuple[Tensor, dict[str, Any]]:
    """A weight [n, m] of a kind on the GPU, and what comes with it."""
    if kind == "bf16":
        return torch.randn(n, m, device="cuda").bfloat16() / n**0.5, {}
    most = 127 if kind == "w8" else 7
    codes = torch.randint(-most, most + 1, (n, m), device="cuda", dtype=torch.int8)
    if kind == "w8":
        return codes, {"scale": torch.rand(m, device="cuda") / 4096}
    scale = pack_scales((torch.rand(m // GROUP, n, device="cuda") / 512).bfloat16(), m, paired)
    around = {"scale": scale, "m": m, "largest_scale": 1 / 512, "paired": paired}
    return pack_codes(codes, paired), around


def inputs(model: str, site: str, kind: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """x [1, n], a weight [n, m] of a kind, and what else a decoder's launch for the site takes."""
    n, m = PROJECTIONS[model, site]
    x, (weight, around) = torch.randn(1, n, device="cuda").bfloat16(), made(kind, n, m, paired=site == "gate+up")
    if site in ("qkv", "gate+up"):
        around |= {"norm": torch.ones(n, device="cuda").bfloat16(), "eps": EPS, "swiglu": site == "gate+up"}
    else:
        around |= {"residual": torch.randn(1, m, device="cuda").bfloat16()}
    return x, weight, around


def cases(model: str, site: str, kind: str) -> list[Callable[[], Tensor]]:
    """The site's product at level 0, then with half of the entries."""
    x, weight, around = inputs(model, site, kind)
    limit = limit_from_threshold(_MEDIAN, torch.bfloat16, "cuda")
    return [partial(select_gemv, x, weight, **around, **given) for given in ({}, {"limit": limit})]


def main() -> None:
    """Compile, mark, run."""
    parser = argparse.ArgumentParser(description="Launches of the sparse product for Nsight Compute.")
    parser.add_argument("--model", default="LLaMA3-8B", choices=sorted({model for model, _ in PROJECTIONS}))
    parser.add_argument("--sites", default="gate+up", help="qkv, gate+up, down, with commas")
    parser.add_argument("--weights", default=",".join(KINDS), help="bf16, w8, w4, with commas")
    options = parser.parse_args()
    sites, kinds = options.sites.split(","), options.weights.split(",")
    if unknown := [own for own in sites if (options.model, own) not in PROJECTIONS]:
        parser.error(
            f"--sites {unknown[0]}: expected one of {[site for name, site in PROJECTIONS if name == options.model]}"
        )
    if unknown := [own for own in kinds if own not in KINDS]:
        parser.error(f"--weights {unknown[0]}: expected one of {', '.join(KINDS)}")
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA GPU: there are no counters to read")
    torch.manual_seed(0)
    launches = [launch for site in sites for kind in kinds for launch in cases(options.model, site, kind)]
    for launch in launches:
        launch()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    for launch in launches:
        launch()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
