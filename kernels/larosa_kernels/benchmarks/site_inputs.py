"""Random inputs of a decoder's launch for one site, on weights of any format."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from larosa_kernels.benchmarks.shapes import EPS, PROJECTIONS
from larosa_kernels.ops.sparse_gemv_quantised.packing import GROUP, pack_qweight, pack_scales

FORMATS = ("bf16", "w8", "w4")
"""Weight formats."""


def random_weight(weight_format: str, n: int, m: int, paired: bool = False) -> tuple[Tensor, dict[str, Any]]:
    """A weight [n, m] on the GPU, and the other arguments that it comes with."""
    if weight_format == "bf16":
        return torch.randn(n, m, device="cuda").bfloat16() / n**0.5, {}
    most = 127 if weight_format == "w8" else 7
    qweight = torch.randint(-most, most + 1, (n, m), device="cuda", dtype=torch.int8)
    if weight_format == "w8":
        return qweight, {"scale": torch.rand(m, device="cuda") / 4096}
    scale = pack_scales((torch.rand(m // GROUP, n, device="cuda") / 512).bfloat16(), m, paired)
    around = {"scale": scale, "out_features": m, "max_scale": 1 / 512, "paired": paired}
    return pack_qweight(qweight, paired), around


def inputs(model: str, site: str, weight_format: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """x [1, n], a weight [n, m], and what else a decoder's launch for the site takes."""
    n, m = PROJECTIONS[model, site]
    x, (weight, around) = (
        torch.randn(1, n, device="cuda").bfloat16(),
        random_weight(weight_format, n, m, paired=site == "gate+up"),
    )
    if site in ("qkv", "gate+up"):
        around |= {"norm": torch.ones(n, device="cuda").bfloat16(), "eps": EPS, "swiglu": site == "gate+up"}
    else:
        around |= {"residual": torch.randn(1, m, device="cuda").bfloat16()}
    return x, weight, around
