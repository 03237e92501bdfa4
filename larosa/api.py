"""The Python interface: the pieces that `run.py` is made of, for use without Hydra.

    from larosa import LaRoSAConfig, sparsify

    handle = sparsify(model, tokens, LaRoSAConfig(sparsity=0.4))   # tokens: [N, T] int64
    model.generate(...)                                            # sparse
    handle.kept_bytes                                              # memory of the dense weights that wait
    handle.remove()                                                # the model is as before, bit for bit

`LaRoSAActivationSparsifier` shows the method on one activation tensor, without a model.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from larosa.calibration.statistics import second_moments, with_gamma
from larosa.calibration.tokens import TokenBlock
from larosa.config import (
    CoefficientsConfig,
    Level,
    MethodConfig,
    ScheduleConfig,
    Strict,
    TokenPolicyConfig,
    TopKConfig,
)
from larosa.rotation import bases
from larosa.rotation.rotation import LayerwiseRotationMatrix, build_rotation
from larosa.sites import ModelShape
from larosa.sparsity.handle import Plan, SparsityHandle, apply
from larosa.sparsity.schedule import make_levels
from larosa.sparsity.top_k import TopKSparsification


class LaRoSAConfig(Strict):
    """Settings of LaRoSA, named as in `conf/method` and `conf/schedule`; defaults as in `method=larosa/paper`."""

    sparsity: Level
    """Level asked for, a fraction in [0, 1)."""
    coefficients: CoefficientsConfig = CoefficientsConfig(h1=0.8, h2=1.2, h3=0.8, h4=1.2)
    """Per site; the official code's by default."""
    count: Literal["bytes", "nominal"] = "bytes"
    """`bytes`: `sparsity` is the byte-weighted level of the seven projections (whole models only)."""
    form: Literal["absorbed", "simulated"] = "absorbed"
    basis: Literal["pca", "random", "hadamard", "identity"] = "pca"
    granularity: Literal["layer", "block", "group", "model"] = "layer"
    group_size: int = Field(default=4, ge=1)
    ties: Literal["strict", "keep"] = "strict"
    score: Literal["magnitude", "column_norm"] = "magnitude"
    tokens: TokenPolicyConfig = TokenPolicyConfig(kind="all", n=0, fraction=1.0)
    keep_weights: Literal["device", "cpu"] = "device"
    batch_size: int = Field(default=1, ge=1)
    """Calibration sequences a forward pass."""
    seed: int = Field(default=0, ge=0)


class LaRoSAActivationSparsifier(nn.Module):
    """Rotate, keep the largest magnitudes, rotate back: LaRoSA on one activation tensor.

    The level of a block is coefficient * sparsity: h1's coefficient for "attention", h3's for "mlp". (A rescaling
    to byte-weighted levels needs a model's shape: see :func:`sparsify`.) Of the configuration, sparsity,
    coefficients, basis, ties and seed apply to a single tensor.
    """

    def __init__(self, hidden_size: int, config: LaRoSAConfig) -> None:
        super().__init__()
        self.config = config
        self.rotation = LayerwiseRotationMatrix(hidden_size)
        self._fitted = config.basis == "identity"
        levels = {"attention": config.coefficients.h1, "mlp": config.coefficients.h3}
        self.top_k = nn.ModuleDict(
            {
                block: TopKSparsification(hidden_size, alpha * config.sparsity, config.ties)
                for block, alpha in levels.items()
            }
        )

    def compute_rotation_matrix(self, calibration_activations: Tensor) -> Tensor:
        """Set Q for activations [..., hidden_size] and return it, [hidden_size, hidden_size] float64.

        `basis=pca` fits Q to them; the other bases need only their width. Raises ValueError on NaN, on another
        width, or on fewer vectors than dimensions, BasisError where there is no Hadamard matrix.
        """
        D = self.rotation.Q.shape[0]
        if self.config.basis == "pca":
            self.rotation.fit(calibration_activations)
        elif self.config.basis != "identity":
            make = bases.random if self.config.basis == "random" else bases.hadamard
            self.rotation.Q = make(D, self.config.seed).to(self.rotation.Q.device)
        self._fitted = True
        return self.rotation.Q

    def forward(self, activation: Tensor, block_type: str = "attention") -> Tensor:
        """activation: [..., hidden_size], any float dtype; returns the same shape and dtype."""
        if block_type not in self.top_k:
            raise ValueError(f"block_type must be 'attention' or 'mlp', got {block_type!r}")
        if not self._fitted:
            raise ValueError("call compute_rotation_matrix(calibration_activations) first: there is no rotation yet")
        z = self.rotation.rotate(activation)
        return self.rotation.unrotate(self.top_k[block_type](z)).to(activation.dtype)


def sparsify(model: PreTrainedModel, tokens: Tensor, config: LaRoSAConfig) -> SparsityHandle:
    """Calibrate LaRoSA on `tokens` [N, T] int64 and make a transformers causal model follow it, in place.

    Returns the handle whose `remove()` restores the model. Raises LarosaError for an unknown architecture, too few
    tokens, NaN, or a level that the coefficients cannot give.
    """
    if tokens.dim() != 2 or tokens.dtype != torch.int64:
        raise ValueError(f"tokens must be [N, T] int64, got {list(tokens.shape)} {tokens.dtype}")
    shape = ModelShape.of(model.config)
    method = MethodConfig(
        name="larosa", preset="larosa", form=config.form, basis=config.basis, granularity=config.granularity,
        group_size=config.group_size, rotation_dtype="float64", transform_storage="model", block_size=None,
        tuning=None, rule="top_k",
        top_k=TopKConfig(ties=config.ties), score=config.score,
        rank_share=0.0, rank_search=(),
    )  # fmt: skip
    schedule = ScheduleConfig(
        name="given", kind="coefficients", coefficients=config.coefficients, table={}, path=None, count=config.count
    )
    levels = make_levels(shape, schedule, config.sparsity, model.config.model_type)
    moments = None
    if config.basis == "pca":
        digest = hashlib.sha256(tokens.cpu().numpy().tobytes()).hexdigest()
        block = TokenBlock(tokens.cpu(), "given", len(tokens), tokens.numel(), digest)
        moments = second_moments(model, block, config.batch_size)
        if config.form == "simulated":
            moments = with_gamma(moments, model)
    with torch.no_grad():
        rotation = build_rotation(method, moments, shape.layers, shape.hidden_size, config.seed, model.device)
    return apply(model, Plan(method, shape, levels, config.tokens, rotation), config.keep_weights)
