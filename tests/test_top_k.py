"""Top-K against a NumPy reference: ties, zeros, k = 0, k = width, half precision."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from larosa.sparsity.top_k import (
    TopKSparsification,
    keep_mask,
    kept_channels,
    kth_magnitude,
    theoretical_error,
)


def reference(x: np.ndarray, k: int, ties: str) -> np.ndarray:
    """One row: the k largest magnitudes by a stable sort, lowest index first among equals."""
    magnitude = np.abs(x)
    order = np.argsort(-magnitude, kind="stable")
    keep = np.zeros(len(x), dtype=bool)
    keep[order[:k]] = True
    if ties == "keep" and k:
        keep |= magnitude >= magnitude[order[k - 1]]
    return keep


# Few distinct values, so that ties and zeros are the rule.
values = st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 1.0078125, 3.0, -3.0])


@settings(max_examples=200, deadline=None)
@given(
    x=arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 17)), elements=values),
    share=st.floats(0, 1),
    ties=st.sampled_from(["strict", "keep"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_mask_equals_reference(x: np.ndarray, share: float, ties: str, dtype: torch.dtype) -> None:
    k = round(share * x.shape[1])
    mask = keep_mask(torch.from_numpy(x).to(dtype), k, ties).numpy()
    for row, got in zip(x, mask, strict=True):
        np.testing.assert_array_equal(got, reference(row, k, ties))


@settings(max_examples=50, deadline=None)
@given(x=arrays(np.float32, (3, 33), elements=st.floats(-1e6, 1e6, width=32)), k=st.integers(1, 33))
def test_kth_magnitude_is_exact(x: np.ndarray, k: int) -> None:
    got = kth_magnitude(torch.from_numpy(x), k).numpy()
    np.testing.assert_array_equal(got[:, 0], np.sort(np.abs(x), axis=1)[:, -k])


def test_bfloat16_ties_follow_the_rule() -> None:
    x = torch.tensor([[1.0, -1.0, 1.0, 0.25, 2.0]], dtype=torch.bfloat16)
    assert keep_mask(x, 2, "strict").tolist() == [[True, False, False, False, True]]
    assert keep_mask(x, 2, "keep").tolist() == [[True, True, True, False, True]]


@pytest.mark.parametrize("width", [1, 7, 576, 1536])
def test_level_is_met_within_half_a_channel(width: int) -> None:
    for level in np.linspace(0, 1, 101):
        dropped = width - kept_channels(float(level), width)
        assert abs(dropped - level * width) <= 0.5 + 1e-9


def test_non_contiguous_input_and_output_dtype() -> None:
    x = torch.randn(6, 8, dtype=torch.bfloat16).T
    top_k = TopKSparsification(6, 0.5)
    y = top_k(x)
    assert y.dtype == x.dtype
    assert torch.equal(y, top_k(x.contiguous()))
    assert ((y != 0).sum(-1) == 3).all()


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"width 8, .*got \[1, 4\]"):
        TopKSparsification(8, 0.5)(torch.zeros(1, 4))
    with pytest.raises(ValueError, match="strict"):
        TopKSparsification(8, 0.5, "maybe")
    with pytest.raises(ValueError, match="fraction"):
        kept_channels(1.5, 8)


def test_theorem_against_the_paper_and_simulation() -> None:
    for level, printed in {0.25: 0.091, 0.40: 0.188, 0.50: 0.267, 0.60: 0.359, 0.75: 0.526}.items():
        assert theoretical_error(level) == pytest.approx(printed, abs=6e-4)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 2048, generator=generator)
    W = torch.randn(2048, 256, generator=generator)
    y = TopKSparsification(2048, 0.5)(x)
    simulated = float(((x - y) @ W).norm() / (x @ W).norm())
    assert simulated == pytest.approx(theoretical_error(0.5), rel=0.02)
    assert theoretical_error(0.0) == 0.0
    assert math.isclose(theoretical_error(1.0), 1.0)


@pytest.mark.parametrize("width", [1, 48, 80, 576, 896, 1536, 4096, 11008, 18944])
@pytest.mark.parametrize("alpha", [0.8, 1.0, 1.2])
def test_rounding_down_is_the_codes_of_larosa_and_wina(width: int, alpha: float) -> None:
    for percent in range(0, 81, 5):
        level = percent / 100 * alpha
        expected = int((1 - level) * width)
        assert kept_channels(level, width, "down") == expected
        assert kept_channels(1 - expected / width, width) == expected  # a plan passes it on as a level
        assert 0 <= kept_channels(level, width) - expected <= 1
