"""The schema of `allocation`: how `larosa.cli.allocate` searches for a schedule."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from larosa.config.base import Strict


class AllocationConfig(Strict):
    """How `larosa.cli.allocate` searches for a schedule. Runs read the file that it writes, not these settings."""

    algorithm: Literal["marginal", "greedy"]
    """`marginal`: equal marginal error over all layers and sites. `greedy`: TEAL's, which brings each layer to the
    target."""
    error: Literal["output", "kl"]
    """`output`: the error of the layer's output. `kl`: nats per token between the sparse and the dense distribution."""
    other_sites: Literal["dense", "sparse"]
    """What the other sites do while one site is searched. `dense`: they drop nothing. `sparse`: they keep the levels of
    `schedule` at `sparsity`."""
    grid: tuple[Annotated[float, Field(ge=0.0, le=0.9)], ...] = Field(min_length=2)
    """Levels tried, rising from 0. The last is the highest level that a search gives."""
    step: float = Field(gt=0.0)
    """`greedy`: weights dropped per step of a site, as a fraction of a D x D matrix."""

    @model_validator(mode="after")
    def _possible(self) -> AllocationConfig:
        if self.grid[0] != 0.0 or any(b <= a for a, b in pairwise(self.grid)):
            raise ValueError("allocation.grid must rise from 0")
        if self.algorithm == "greedy" and (self.error, self.other_sites) != ("output", "dense"):
            raise ValueError(
                "allocation.algorithm=greedy measures the layer's output on the hidden states of the dense model: "
                "set allocation.error=output and allocation.other_sites=dense"
            )
        return self
