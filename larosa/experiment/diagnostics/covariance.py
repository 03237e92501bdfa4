"""How alike the activations of several texts are: cosines between second-moment matrices (the paper's Table 8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from larosa.calibration.statistics import NORM_SITES


def cosines(moments: Mapping[str, Tensor], site: str) -> dict[str, Any]:
    """`<A, B> / (|A| |B|)`, Frobenius, for every pair of texts: per layer, and the mean over layers.

    moments: text -> [layers, 2, D, D] of h1 and h3, see calibration.statistics.
    """
    names = list(moments)
    rows = [moments[name][:, NORM_SITES.index(site)].double().flatten(1) for name in names]
    units = torch.stack([row / row.norm(dim=1, keepdim=True) for row in rows])  # [texts, layers, D * D]
    products = torch.einsum("alx,blx->abl", units, units)
    by_layer = {
        f"{names[a]}|{names[b]}": products[a, b].tolist() for a in range(len(names)) for b in range(a + 1, len(names))
    }
    return {"sets": names, "site": site, "cosine": products.mean(-1).tolist(), "by_layer": by_layer}
