"""The schema of `allocation`: how the commands that write schedules find them."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from larosa.config.base import Strict


class AllocationConfig(Strict):
    """How `larosa.cli.allocate` finds a schedule; what it writes is what runs read."""

    algorithm: Literal["marginal", "greedy"]
    """`marginal`: equal marginal error over all layers and sites. `greedy`: TEAL's, layer by layer to one target."""
    error: Literal["output", "kl"]
    """`output`: of the layer's output; `kl`: nats a token between the model's distribution and the dense one."""
    other_sites: Literal["dense", "sparse"]
    """While one site's level varies the others drop nothing, or the levels of `schedule` at `sparsity`."""
    grid: tuple[Annotated[float, Field(ge=0.0, le=0.9)], ...] = Field(min_length=2)
    """Levels tried, from 0; the last is the highest level that any rule gives."""
    step: float = Field(gt=0.0)
    """`greedy`: weights dropped by one raise of a site, as a fraction of a D x D matrix."""

    @model_validator(mode="after")
    def _possible(self) -> AllocationConfig:
        if self.grid[0] != 0.0 or any(b <= a for a, b in pairwise(self.grid)):
            raise ValueError("allocation.grid must rise from 0")
        if self.algorithm == "greedy" and (self.error, self.other_sites) != ("output", "dense"):
            raise ValueError(
                "allocation.algorithm=greedy is by the layer's output on the dense model's hidden states: "
                "allocation.error must be output, allocation.other_sites dense"
            )
        return self
