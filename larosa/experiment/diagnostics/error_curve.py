"""The relative output error of one site's consumers at many levels, beside Theorem A.1 (the paper's Figure 5).

As in :mod:`larosa.evaluation.error` a token's error is `||W x - W x_sparse|| / ||W x||`, averaged over tokens; here x
is what the site sees while nothing is dropped anywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from larosa.evaluation.error import output_error
from larosa.sparsity.level_override import LevelOverrides
from larosa.sparsity.site import SparseSite


@torch.no_grad()
def error_curve(
    site: SparseSite, x: Tensor, z: Tensor, overrides: LevelOverrides, levels: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Errors at each of `levels`, and the achieved sparsities. x, z: [T, width], see evaluation.tap."""
    errors, achieved = [], []
    for level in levels:
        kept = overrides.selector(site, level)(z)
        y = kept if site.rotation is None else site.rotation.unrotate(kept).to(x.dtype)
        errors.append(float(output_error(site, x, y).double().mean()))
        achieved.append(float((kept == 0).double().mean()))
    return errors, achieved
