"""The weights of the fast decoder: one copy, input-major, what reads a site side by side.

| site | matrix | |
|---|---|---|
| h1 | [D, (heads + 2 kv_heads) head_dim] | q, k, v |
| h2 | [heads head_dim, D] | o |
| h3 | [D, 2 I] | gate, up |
| h4 | [I, D] | down |

Row i of a matrix is what channel i of its site is multiplied with, so a dropped channel is a row that is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from larosa_kernels.ops.decode_attention.reference import norm_heads
from torch import Tensor
from transformers import LlamaConfig, PretrainedConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from larosa.decode.errors import DecodeError
from larosa.decode.matrix import Matrix, PackedMatrix, dense, tensors
from larosa.models.architecture import ARCHITECTURES, architecture_of
from larosa.models.formats import quantised
from larosa.models.sites import ModelShape

_FIXED_ROTARY = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class Transform:
    """z = x @ matrix behind a norm. `matrix` [D, D], int8 with `scale` [D] float32 an output, or blocks [n, b, b]."""

    matrix: Tensor
    scale: Tensor | None = None

    def dense(self, dtype: torch.dtype) -> Tensor:
        """The matrix without its scale, [..., b, b] in `dtype`."""
        return self.matrix.to(dtype) if self.scale is None else (self.matrix.float() * self.scale).to(dtype)


@dataclass(frozen=True)
class LayerWeights:
    """One layer, by site."""

    matrices: dict[str, Matrix]
    norms: dict[str, Tensor]
    """h1, h3 -> [D]"""
    biases: dict[str, Tensor] = field(default_factory=dict)
    adapters: dict[str, Matrix] = field(default_factory=dict)
    """h1: [D, D] that the residual stream goes through before the layer; h3: only the input of the MLP's norm."""
    transforms: dict[str, Transform] = field(default_factory=dict)
    head_norms: Tensor | None = None
    """[2, head_dim]: weights of the norms over each query head and each key head."""
    scale: Tensor | None = None
    """[heads head_dim] that h2 is multiplied with before it is ranked; o's rows undo it."""

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors of the layer, under `projections`, `norms`, `biases`, `adapters`, `transforms` or `scales`."""
        for kind in ("matrices", "norms", "biases", "adapters"):
            for matrix in getattr(self, kind).values():
                yield from (("projections" if kind == "matrices" else kind, each) for each in tensors(matrix))
        for transform in self.transforms.values():
            yield "transforms", transform.matrix
            if transform.scale is not None:
                yield "transforms", transform.scale
        if self.head_norms is not None:
            yield "norms", self.head_norms
        if self.scale is not None:
            yield "scales", self.scale


@dataclass(frozen=True)
class DecodeWeights:
    """A whole model. `config` is transformers', `embedding` and `head` are [vocabulary, D]; of codes the head is
    [D, vocabulary], as all other matrices."""

    config: PretrainedConfig
    layers: tuple[LayerWeights, ...]
    embedding: Tensor
    final_norm: Tensor
    head: Matrix

    def __post_init__(self) -> None:
        check_decodable(self.config)
        if self.dtype not in (torch.bfloat16, torch.float16, torch.float32):
            raise DecodeError(f"the decoder runs in bfloat16, float16 or float32, not {self.dtype}")

    @property
    def shape(self) -> ModelShape:
        """Widths of the sites, for as many layers as there are here."""
        return replace(ModelShape.of(self.config), layers=len(self.layers))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations and projections."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.embedding.device

    @property
    def kv_heads(self) -> int:
        """Heads of the KV cache."""
        return int(self.config.num_key_value_heads)

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.shape.sites["h2"].width // int(self.config.num_attention_heads)

    def normed(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [..., heads, head_dim] with the norms of queries and keys where the layer has them."""
        norms, eps = self.layers[layer].head_norms, float(self.config.rms_norm_eps)
        if norms is None:
            return q, k, v
        return norm_heads(q, norms[0], eps), norm_heads(k, norms[1], eps), v

    def first(self, layers: int) -> DecodeWeights:
        """The model cut to its first layers; tensors are shared."""
        return replace(self, layers=self.layers[:layers])

    @property
    def vocabulary(self) -> int:
        """Outputs of the head."""
        return len(self.embedding)

    @property
    def packed(self) -> bool:
        """Whether the projections are codes."""
        return any(isinstance(each, PackedMatrix) for layer in self.layers for each in layer.matrices.values())

    def head_matrix(self, dtype: torch.dtype) -> Tensor:
        """The head as [D, vocabulary]."""
        return self.head.dense(dtype) if isinstance(self.head, PackedMatrix) else self.head.to(dtype).T

    def rounded(self, scheme: str | None, head: bool = False, adapters: bool = False) -> DecodeWeights:
        """The projections as codes, `w8` or `w4_out`, round to nearest; head and adapters in w8 where asked for."""

        def packed(matrices: dict[str, Matrix], scheme: str) -> dict[str, Matrix]:
            return {
                site: PackedMatrix.of(quantised(dense(each, self.dtype), scheme), paired=site == "h3")
                for site, each in matrices.items()
            }

        layers = self.layers
        if scheme is not None:
            layers = tuple(replace(layer, matrices=packed(layer.matrices, scheme)) for layer in layers)
        if adapters:
            layers = tuple(replace(layer, adapters=packed(layer.adapters, "w8")) for layer in layers)
        packed_head = PackedMatrix.of(quantised(self.head_matrix(self.dtype), "w8")) if head else self.head
        return replace(self, layers=layers, head=packed_head)

    def dequantised(self) -> DecodeWeights:
        """The same values without codes, in the dtype of activations; tensors that are none are shared."""
        layers = (
            replace(layer, matrices={site: dense(each, self.dtype) for site, each in layer.matrices.items()})
            for layer in self.layers
        )
        head = self.head_matrix(self.dtype).T.contiguous() if isinstance(self.head, PackedMatrix) else self.head
        return replace(self, layers=tuple(layers), head=head)

    def bare(self) -> DecodeWeights:
        """Without adapters, transforms and scales: as fast as the dense model, but no longer the same function."""
        layers = (replace(layer, adapters={}, transforms={}, scale=None) for layer in self.layers)
        return replace(self, layers=tuple(layers))

    def rotary(self, max_len: int) -> tuple[Tensor, Tensor]:
        """cos and sin [max_len, head_dim] in the model's dtype, as transformers rounds them."""
        module = LlamaRotaryEmbedding(cast(LlamaConfig, self.config))
        cos, sin = module(torch.empty(0, dtype=self.dtype), torch.arange(max_len)[None])
        return cos[0].to(self.device), sin[0].to(self.device)

    def check_length(self, max_len: int) -> None:
        """Raise DecodeError where a sliding window would hide older tokens, which the decoder does not do."""
        check_window(self.config, len(self.layers), max_len)


def check_decodable(config: PretrainedConfig) -> None:
    """Raise DecodeError for a model that the decoder would run wrongly: known from its configuration alone."""
    if not architecture_of(config).decodable:
        known = ", ".join(sorted(name for name, each in ARCHITECTURES.items() if each.decodable))
        raise DecodeError(
            f"the fast decoder does not run the attention of model_type {config.model_type!r}; it runs that of "
            f"{known}. Leave evaluation=speed out"
        )
    if config.hidden_act != "silu":
        raise DecodeError(f"hidden_act={config.hidden_act}: the decoder knows silu only")
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in _FIXED_ROTARY:
        raise DecodeError(f"rope_type={kind} depends on the length: expected one of {', '.join(_FIXED_ROTARY)}")


def check_window(config: PretrainedConfig, layers: int, max_len: int) -> None:
    """Raise DecodeError where a sliding window in the first `layers` would hide one of max_len tokens."""
    kinds = getattr(config, "layer_types", None)
    sliding = "sliding_attention" in kinds[:layers] if kinds else True
    window = getattr(config, "sliding_window", None)
    if window is not None and sliding and max_len > window:
        raise DecodeError(f"max_len={max_len} exceeds the sliding window of {window}, which the decoder lacks")


def has_bias(config: PretrainedConfig, site: str) -> bool:
    """Whether the projections that read a site have biases."""
    if config.model_type == "qwen2":
        return site == "h1"
    if site == "h2" and hasattr(config, "attention_out_bias"):
        return bool(config.attention_out_bias)
    return bool(getattr(config, "attention_bias" if site in ("h1", "h2") else "mlp_bias", False))


class _Draws:
    """Random tensors of one generator, drawn on its device."""

    def __init__(self, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self._generator = torch.Generator(device).manual_seed(seed)
        self._where: dict[str, Any] = {"dtype": dtype, "device": device}

    def normal(self, *size: int) -> Tensor:
        """N(0, 0.02)."""
        return torch.empty(size, **self._where).normal_(0.0, 0.02, generator=self._generator)

    def gamma(self, *size: int) -> Tensor:
        """The weight of a norm, uniform from 0.5 to 1.5."""
        return torch.empty(size, **self._where).uniform_(0.5, 1.5, generator=self._generator)

    def orthogonal(self, D: int) -> Tensor:
        """[D, D] float32."""
        gaussian = torch.randn(D, D, device=self._generator.device, generator=self._generator)
        Q: Tensor = torch.linalg.qr(gaussian).Q
        return Q

    def shuffled(self, matrix: Tensor) -> Tensor:
        """Rows and columns of a square matrix in another order."""
        device, D = matrix.device, len(matrix)
        rows, columns = (torch.randperm(D, device=device, generator=self._generator) for _ in range(2))
        return matrix[rows][:, columns]


def random_weights(
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    layers: int | None = None,
    adapters: int = 0,
    transforms: str | None = None,
) -> DecodeWeights:
    """N(0, 0.02) weights at a true shape, made on the device.

    adapters: 1, in front of every layer but the first; 2, and in front of every MLP's norm. transforms: `int8` or
    `model`, in front of q, k, v and of gate, up. All are one random orthogonal matrix with rows and columns shuffled.
    """
    draw, D = _Draws(dtype, device, seed), int(config.hidden_size)
    Q = draw.orthogonal(D) if adapters or transforms else torch.eye(1)
    sites = ModelShape.of(config).sites
    head_dim, normed = sites["h2"].width // int(config.num_attention_heads), architecture_of(config).head_norms

    def layer(index: int) -> LayerWeights:
        at = (["h1"] if adapters and index else []) + (["h3"] if adapters > 1 else [])
        return LayerWeights(
            matrices={name: draw.normal(site.width, site.out_features) for name, site in sites.items()},
            norms={"h1": draw.gamma(D), "h3": draw.gamma(D)},
            biases={name: draw.normal(site.out_features) for name, site in sites.items() if has_bias(config, name)},
            adapters={site: draw.shuffled(Q).to(dtype) for site in at},
            transforms={s: stored(draw.shuffled(Q), transforms, dtype) for s in ("h1", "h3")} if transforms else {},
            head_norms=draw.gamma(2, head_dim) if normed else None,
        )

    count = int(config.num_hidden_layers) if layers is None else layers
    embedding = draw.normal(int(config.vocab_size), D) * 50
    head = embedding if config.tie_word_embeddings else draw.normal(int(config.vocab_size), D)
    return DecodeWeights(config, tuple(layer(i) for i in range(count)), embedding, draw.gamma(D), head)


def stored(matrix: Tensor, storage: str, dtype: torch.dtype) -> Transform:
    """A transform [D, D] (input-major) as int8 with a scale an output, or in the model's dtype."""
    if storage == "model":
        return Transform(matrix.to(dtype))
    if storage != "int8":
        raise DecodeError(f"transforms={storage}: expected int8 or model")
    scale = matrix.abs().amax(0) / 127
    return Transform((matrix / scale).round().to(torch.int8), scale.float())
