"""Where a decoder keeps its parts: one table by `config.model_type`, and a view of a model by that table.

To add an architecture, add a row: it must be a pre-norm decoder whose two norms per layer are RMSNorms that
feed q, k, v and gate, up, and whose linears are `nn.Linear`. tests/test_absorb.py runs every row through the
same parity tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from larosa.errors import LarosaError

SITES = ("h1", "h2", "h3", "h4")


class ArchitectureError(LarosaError):
    """The model is of a kind that larosa does not know."""


@dataclass(frozen=True)
class Architecture:
    """Attribute paths of a decoder's parts; those of a layer are relative to the layer."""

    decoder: str
    """The module that runs embeddings and layers, without the head."""
    layers: str
    embedding: str
    final_norm: str
    head: str
    norms: dict[str, str]
    """Site (h1, h3) -> the norm whose output it is."""
    consumers: dict[str, tuple[str, ...]]
    """Site -> the linears that read it."""
    gate: str
    """The activation function behind the gate projection."""
    writers: tuple[str, ...]
    """The linears that write to the residual stream."""
    head_norms: tuple[str, ...] = ()
    """The RMSNorms over each query head and each key head, in front of the rotary embedding; (): none."""
    decodable: bool = True
    """Whether the attention is LLaMA's (with `head_norms`), which is the one that larosa.decode runs."""


_LLAMA = Architecture(
    decoder="model",
    layers="model.layers",
    embedding="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    norms={"h1": "input_layernorm", "h3": "post_attention_layernorm"},
    consumers={
        "h1": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "h2": ("self_attn.o_proj",),
        "h3": ("mlp.gate_proj", "mlp.up_proj"),
        "h4": ("mlp.down_proj",),
    },
    gate="mlp.act_fn",
    writers=("self_attn.o_proj", "mlp.down_proj"),
)

_OTHER_ATTENTION = replace(_LLAMA, decodable=False)

# These share LLaMA's names. A sliding window, a layer without rotary embedding, a norm of queries and keys or a factor
# of the scores belongs to the attention, which nothing here changes; biases of q, k, v are added after the product, so
# folding leaves them as they are. docs/extending.md says why others are not here.
ARCHITECTURES: dict[str, Architecture] = {
    "cwm": _LLAMA,
    "diffllama": _OTHER_ATTENTION,
    "ernie4_5": _OTHER_ATTENTION,
    "helium": _OTHER_ATTENTION,
    "hunyuan_v1_dense": _OTHER_ATTENTION,
    "internlm3": _LLAMA,
    "iquestcoder": _LLAMA,
    "llama": _LLAMA,
    "ministral": _LLAMA,
    "ministral3": _OTHER_ATTENTION,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": replace(_LLAMA, head_norms=("self_attn.q_norm", "self_attn.k_norm")),
    "seed_oss": _LLAMA,
    "smollm3": _OTHER_ATTENTION,
}


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The table's row for `config.model_type`. Raises ArchitectureError that lists the known ones."""
    return architecture(config.model_type)


def architecture(model_type: str) -> Architecture:
    """The table's row. Raises ArchitectureError that lists the known ones."""
    try:
        return ARCHITECTURES[model_type]
    except KeyError:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ArchitectureError(
            f"model_type {model_type!r} is not supported; supported are {known}. docs/extending.md says how to add one"
        ) from None


def norm_epsilon(norm: nn.Module) -> float:
    """The epsilon of an RMSNorm, transformers' or torch's."""
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)  # type: ignore[arg-type]


class LayerView:
    """One decoder layer; its parts by site."""

    def __init__(self, index: int, module: nn.Module, architecture: Architecture) -> None:
        self.index = index
        self.module = module
        self._architecture = architecture

    def norm(self, site: str) -> nn.Module:
        """The RMSNorm whose output is `site` (h1 or h3)."""
        return self.module.get_submodule(self._architecture.norms[site])

    def gate(self) -> nn.Module:
        """The activation function whose output gates the MLP's hidden vector."""
        return self.module.get_submodule(self._architecture.gate)

    def head_norms(self) -> list[nn.Module]:
        """The RMSNorms over each query head and each key head; []: none."""
        return [self.module.get_submodule(path) for path in self._architecture.head_norms]

    def consumers(self, site: str) -> list[nn.Linear]:
        """The linears that read `site`."""
        return [self._linear(path) for path in self._architecture.consumers[site]]

    def writers(self) -> list[nn.Linear]:
        """The linears that write to the residual stream: o and down."""
        return [self._linear(path) for path in self._architecture.writers]

    def _linear(self, path: str) -> nn.Linear:
        module = self.module.get_submodule(path)
        if not isinstance(module, nn.Linear):
            raise ArchitectureError(
                f"layer {self.index}: {path} is a {type(module).__name__}, expected nn.Linear; "
                "load the model without quantisation or adapters"
            )
        return module


class ModelView:
    """The parts of a transformers causal language model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.architecture = architecture_of(model.config)
        modules = cast(nn.ModuleList, model.get_submodule(self.architecture.layers))
        self.layers = [LayerView(i, module, self.architecture) for i, module in enumerate(modules)]

    @property
    def decoder(self) -> nn.Module:
        """Embeddings and layers with the final norm, without the head."""
        return self.model.get_submodule(self.architecture.decoder)

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding, [vocabulary, D]."""
        return cast(nn.Embedding, self.model.get_submodule(self.architecture.embedding))

    @property
    def final_norm(self) -> nn.Module:
        """The norm before the head."""
        return self.model.get_submodule(self.architecture.final_norm)

    @property
    def head(self) -> nn.Linear:
        """The language-model head, [vocabulary, D]."""
        return cast(nn.Linear, self.model.get_submodule(self.architecture.head))

    def sites(self) -> Iterator[tuple[LayerView, str]]:
        """Every (layer, site), in the order of the data."""
        for layer in self.layers:
            for site in SITES:
                yield layer, site
