"""GPTQ on the decoder's grids: on the grid, better where inputs hang together, plain rounding where they do not."""

from __future__ import annotations

import pytest
import torch
from test_quantization import matrix
from torch import Tensor

from larosa.models.formats import QuantizationError, quantised
from larosa.quantization.gptq import fed_back

GRIDS = ["w8", "w4_out"]


def inputs(n: int, tokens: int = 400) -> Tensor:
    """[tokens, n] that hang together, of sizes from 1 to 30."""
    x = matrix(tokens, 12, seed=1) @ matrix(12, n, seed=2) + matrix(tokens, n, seed=3) / 2
    return (
        x
        * torch.logspace(0, 1.5, n, dtype=torch.float64)[torch.randperm(n, generator=torch.Generator().manual_seed(4))]
    )


@pytest.mark.parametrize("scheme", GRIDS)
@pytest.mark.parametrize(("n", "m"), [(150, 130), (64, 64), (70, 5)])
def test_outputs_err_less_than_by_rounding(scheme: str, n: int, m: int) -> None:
    W, x = matrix(n, m), inputs(n)
    found, plain = fed_back(W, x.T @ x, scheme), quantised(W, scheme)
    off = {name: float((x @ (own.dense(torch.float64) - W)).norm()) for name, own in (("fed", found), ("rtn", plain))}
    assert off["fed"] < 0.75 * off["rtn"]


@pytest.mark.parametrize("scheme", GRIDS)
def test_what_is_found_stands_on_the_grid(scheme: str) -> None:
    W, x = matrix(100, 130), inputs(100)
    found = fed_back(W, x.T @ x, scheme)
    assert found.scheme == scheme
    assert found.qweight.dtype == torch.int8
    plain = quantised(W, scheme)
    assert (found.scale.shape, found.scale.dtype) == (plain.scale.shape, plain.scale.dtype)
    if scheme == "w8":
        assert torch.equal(found.scale, plain.scale)
        assert int(found.qweight.min()) >= -127
    else:
        again = quantised(found.dense(torch.float32), scheme)
        assert torch.equal(again.qweight, found.qweight)
        assert torch.equal(again.scale, found.scale)


@pytest.mark.parametrize("scheme", GRIDS)
def test_inputs_that_do_not_hang_together_are_rounded_to_nearest(scheme: str) -> None:
    W = matrix(70, 66)
    found = fed_back(W, torch.diag(1 + torch.arange(70.0, dtype=torch.float64)), scheme)
    assert torch.equal(found.qweight, quantised(W, scheme).qweight)


@pytest.mark.parametrize("scheme", GRIDS)
def test_the_order_of_inputs_does_not_matter(scheme: str) -> None:
    W, x, other = matrix(90, 70), inputs(90), torch.randperm(90, generator=torch.Generator().manual_seed(5))
    found, turned = fed_back(W, x.T @ x, scheme), fed_back(W[other], x[:, other].T @ x[:, other], scheme)
    assert (turned.qweight == found.qweight[other]).double().mean() > 0.99  # sums of another order round elsewhere


def test_inputs_that_never_speak_are_rounded_and_what_is_not_finite_is_refused() -> None:
    W = matrix(20, 10)
    assert torch.equal(fed_back(W, torch.zeros(20, 20), "w8").qweight, quantised(W, "w8").qweight)
    with pytest.raises(QuantizationError, match="second moments"):
        fed_back(W, torch.full((20, 20), float("nan")), "w8")
    with pytest.raises(QuantizationError, match="NaN or infinity"):
        fed_back(W / 0, torch.eye(20), "w8")
