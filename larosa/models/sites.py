"""The four sites of a layer: their widths, and the weights that each channel is multiplied with.

| site | activation | consumers | width |
|---|---|---|---|
| h1 | input of attention | q, k, v | D |
| h2 | attention output | o | heads * head_dim |
| h3 | input of the MLP | gate, up | D |
| h4 | SiLU(gate) * up | down | I |

Everything here follows from the transformers configuration alone, so a plan is checked before weights load.
"""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PretrainedConfig

from larosa.models.architecture import SITES, architecture_of


@dataclass(frozen=True)
class Site:
    """One site's geometry."""

    width: int
    """Channels."""
    outputs: tuple[int, ...]
    """Output widths of its consumers, in their order."""

    @property
    def out_features(self) -> int:
        """Weights that one channel is multiplied with: the summed output widths of the consumers."""
        return sum(self.outputs)

    @property
    def consumers(self) -> int:
        """Number of projections that take it as input. Nominal sparsity weights a site by width * consumers."""
        return len(self.outputs)

    @property
    def weights(self) -> int:
        """Weights of all consumers."""
        return self.width * self.out_features


@dataclass(frozen=True)
class ModelShape:
    """The shape that levels, bytes and rotations are computed from. All layers are alike."""

    layers: int
    hidden_size: int
    sites: dict[str, Site]

    @classmethod
    def of(cls, config: PretrainedConfig) -> ModelShape:
        """Read the shape off a transformers configuration. Raises ArchitectureError if it is unknown."""
        architecture_of(config)
        D, intermediate = config.hidden_size, config.intermediate_size
        head_dim = getattr(config, "head_dim", None) or D // config.num_attention_heads
        heads, kv_heads = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
        geometry = {
            "h1": (D, (heads, kv_heads, kv_heads)),
            "h2": (heads, (D,)),
            "h3": (D, (intermediate, intermediate)),
            "h4": (intermediate, (D,)),
        }
        sites = {s: Site(*geometry[s]) for s in SITES}
        return cls(layers=config.num_hidden_layers, hidden_size=D, sites=sites)

    @property
    def weights_per_channel(self) -> dict[str, int]:
        """Site -> weights that a dropped channel saves, where only the site's own consumers skip it."""
        return {name: site.out_features for name, site in self.sites.items()}

    @property
    def ratio(self) -> float:
        """M = I / D."""
        return self.sites["h4"].width / self.hidden_size

    @property
    def layer_weights(self) -> int:
        """Weights of the seven projections of one layer."""
        return sum(site.weights for site in self.sites.values())
