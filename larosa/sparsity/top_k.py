"""Exact per-token Top-K by magnitude.

`kept_channels` computes k from a level with one of two roundings. Ties: `strict` keeps exactly k entries, of equal
magnitudes the lowest index first; `keep` keeps every entry whose magnitude is at least the k-th, as the official code
does.

Neither makes a result independent of the batch, nor does ranking by rounded magnitudes. Exact ties (the copies of
a grouped query head's values at the first token) are exact in every batch and are broken the same way. What changes are
near-ties: two magnitudes that differ by rounding alone, whose order follows the order of sums in a matrix product. See
`pipeline.BATCH_DEPENDENCE`, which is in every record.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor, nn

from larosa.errors import ArgumentError
from larosa.models.inputs import check_activations, check_floating, check_width


def kept_channels(level: float, width: int, rounding: str = "nearest") -> int:
    """k, the channels of `width` that are kept at `level` (a fraction in [0, 1]).

    `nearest` drops `floor(level * width + 1/2)` channels. `down` keeps `int((1 - level) * width)`, in floats, as the
    code of LaRoSA does (alibaba/EfficientAI, `top_k_new`) and that of WINA (microsoft/wina, `SparsifyFn`). Raises
    ValueError for a level out of range.
    """
    if not 0.0 <= level <= 1.0:
        raise ArgumentError(f"a level is a fraction in [0, 1], got {level}")
    if rounding == "down":
        return int((1 - level) * width)
    return width - math.floor(level * width + 0.5)


def kth_magnitude(x: Tensor, k: int) -> Tensor:
    """The k-th largest magnitude of every row. x: [..., width]; returns [..., 1], x's dtype; 1 <= k <= width."""
    width = x.shape[-1]
    if not 1 <= k <= width:
        raise ValueError(f"k must be in [1, {width}], got {k}")
    magnitude = x.detach().abs()
    if x.device.type == "cpu":
        # NumPy's vectorised selection is three times faster than torch.topk here, and as exact: float32
        # holds every bfloat16 and float16.
        exact = magnitude if x.dtype == torch.float64 else magnitude.float()
        selected = np.partition(exact.numpy(), width - k, axis=-1)[..., width - k : width - k + 1]
        return torch.from_numpy(np.ascontiguousarray(selected)).to(x.dtype)
    # The least of an unsorted topk: half the time of a sorted one on an H100 (a quarter for rows of 11008). NaN is the
    # largest here as above.
    largest = magnitude.topk(k, dim=-1, sorted=False).values
    return largest.nan_to_num_(nan=torch.inf, posinf=torch.inf).amin(-1, keepdim=True)


def keep_mask(x: Tensor, k: int, ties: str) -> Tensor:
    """True where an entry is kept. x: [..., width]; returns bool of the same shape. Raises ActivationError: no
    floats."""
    check_floating(x)
    width = x.shape[-1]
    if k <= 0:
        return torch.zeros_like(x, dtype=torch.bool)
    if k >= width:
        return torch.ones_like(x, dtype=torch.bool)
    magnitude, kth = x.abs(), kth_magnitude(x, k)
    keep = magnitude >= kth
    if ties == "strict":
        surplus = keep.sum(-1) > k
        if bool(surplus.any()):
            keep[surplus] = _break_ties(magnitude[surplus], kth[surplus], k)
    return keep


def _break_ties(magnitude: Tensor, kth: Tensor, k: int) -> Tensor:
    """Rows [R, width] in which more entries have the k-th magnitude than can be kept."""
    above, equal = magnitude > kth, magnitude == kth
    room = k - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))


def theoretical_error(level: float) -> float:
    """Relative output error of Top-K on Gaussian activations and weights (Theorem A.1 of the paper).

    `sqrt(1 - k/D - 2 z phi(z))` with `z = Phi^-1(1 - k / 2D)` and level `1 - k/D`.
    """
    if level <= 0.0:
        return 0.0
    if level >= 1.0:
        return 1.0
    normal = NormalDist()
    z = normal.inv_cdf(0.5 + level / 2)
    return math.sqrt(max(0.0, level - 2 * z * normal.pdf(z)))


class TopKSparsification(nn.Module):
    """Keeps the k largest magnitudes of every token's vector.

    Args: `width` channels, `level` in [0, 1], `ties` strict or keep, `importance` [width] > 0 or None: entries are
    ranked by `|x_i| * score_i` (WINA, arXiv 2505.19427: the norm of the weight column behind channel i). Raises
    ArgumentError for other values, and for activations of another width or dtype.
    """

    importance: Tensor | None

    def __init__(self, width: int, level: float, ties: str = "strict", importance: Tensor | None = None) -> None:
        super().__init__()
        check_width(width)
        if ties not in ("strict", "keep"):
            raise ArgumentError(f"ties must be 'strict' or 'keep', got {ties!r}")
        if importance is not None:
            check_activations(importance, width)
            if importance.dim() != 1 or not bool((importance >= 0).all()):
                raise ArgumentError(f"importance must be [{width}] and not negative, got {list(importance.shape)}")
        self.width, self.ties = width, ties
        self.k = kept_channels(level, width)
        self.register_buffer("importance", importance, persistent=True)

    def ranked(self, x: Tensor) -> Tensor:
        """The tensor whose magnitudes rank the entries. x: [..., width]."""
        return x if self.importance is None else x * self.importance

    def thresholds(self, x: Tensor) -> Tensor | None:
        """The k-th ranked magnitude, [..., 1]; None where nothing or everything is dropped."""
        return kth_magnitude(self.ranked(x), self.k) if 0 < self.k < self.width else None

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., width] floating; returns the same shape and dtype, dropped entries zero."""
        check_activations(x, self.width)
        return x if self.k == self.width else x * keep_mask(self.ranked(x), self.k, self.ties)
