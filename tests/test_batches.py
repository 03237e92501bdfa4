"""What batching can change: nothing of exact ties, nothing in float64; near-ties are told in the record."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from conftest import build_model
from larosa.api.sparsify import LaRoSAConfig, sparsify
from larosa.evaluation.tasks.likelihood import likelihoods
from larosa.sparsity.site import SparseSite


class FirstTokens:
    """Keeps what h2 of every layer shows at the first token of the first row."""

    def __init__(self) -> None:
        self.z: list[Tensor] = []
        self.kept: list[Tensor] = []

    def observe(self, site: SparseSite, _x: Tensor, _y: Tensor, z: Tensor, z_sparse: Tensor) -> None:
        if site.site == "h2":
            self.z.append(z[0])
            self.kept.append(z_sparse[0] != 0)


@pytest.mark.parametrize("ties", ["strict", "keep"])
def test_copies_of_a_value_tie_exactly_in_every_batch(ties: str, tokens: Tensor) -> None:
    """The first token attends to itself alone, so heads that share a kv head show the same vector at h2."""
    model, seen = build_model("llama", dtype=torch.float32), []
    config = LaRoSAConfig.model_validate({"sparsity": 0.5, "ties": ties})
    with sparsify(model, tokens, config) as handle:
        for batch, length in ((1, 7), (4, 7), (4, 32)):
            seen.append(FirstTokens())
            with handle.observed_by(seen[-1]):
                model(tokens[:batch, :length])
        k = next(site.selector.k for site in handle.sites if site.site == "h2")
    for own in seen:
        heads = torch.stack(own.z).view(5, 2, 3, 8)
        assert torch.equal(heads, heads[:, :, :1].expand_as(heads))
        kept = torch.stack(own.kept)
        assert torch.equal(kept, torch.stack(seen[0].kept))
        assert k % 3 != 0  # so the k-th is one of three that are equal
        if ties == "strict":
            assert (kept.sum(-1) == k).all()
            copies = kept.view(5, 2, 3, 8).int()
            assert (copies.diff(dim=2) <= 0).all()  # the lowest index first
        else:
            assert (kept.sum(-1) == k + 3 - k % 3).all()


def test_likelihoods_in_float64_do_not_depend_on_the_batch() -> None:
    model, draw = build_model("llama"), torch.Generator().manual_seed(3)
    tokens = torch.randint(2, 384, (24, 24), generator=draw)
    lengths = torch.randint(4, 21, (24,), generator=draw).tolist()
    asked = [(tuple(row[:n].tolist()), tuple(row[n : n + 3].tolist())) for row, n in zip(tokens, lengths, strict=True)]
    with sparsify(model, tokens, LaRoSAConfig(sparsity=0.5)):
        alone, together = ([nats for nats, _ in likelihoods(model, asked, size)] for size in (1, 8))
    assert together == pytest.approx(alone, rel=1e-9)
