"""The schema of a method: names, types and ranges of its settings, and which of them go together.

A part of :mod:`larosa.config`. Settings that change a result have no default here: their values stand in
``conf/method``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from larosa.schema import Strict

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
_BOTH_RULES = ("magnitude", "r_sparse", "larosa")


class CoefficientsConfig(Strict):
    """Coefficients alpha of the four sites (section 2 of the paper): site level = alpha * level.

    Of h2 and h4, None follows from h1 and h3 by the paper's constraints.
    """

    h1: float = Field(ge=0.0)
    h2: float | None = Field(ge=0.0)
    h3: float = Field(ge=0.0)
    h4: float | None = Field(ge=0.0)


class TopKConfig(Strict):
    """The sparsifier's fine print."""

    ties: Literal["strict", "keep"]
    """`strict`: exactly k entries stay, of equal magnitudes the lowest index first; `keep`: all entries
    whose magnitude is at least the k-th stay."""
    rounding: Literal["nearest", "down"] = "nearest"
    """`nearest`: k is the whole number nearest (1 - level) * width; `down`: the next one below, as in the codes of
    LaRoSA and WINA."""


class TuningConfig(Strict):
    """Gradient steps on a basis or a transform, see :mod:`larosa.rotation.tuning`."""

    objective: Literal["kl", "output_error"]
    sparsity: Annotated[float, Field(gt=0.0, lt=1.0)]
    """The byte-weighted level to tune at; one tuning serves all levels."""
    coefficients: CoefficientsConfig
    """How that level is spread over the sites."""
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    """Calibration sequences a step."""
    learning_rate: float = Field(gt=0.0)


class MethodConfig(Strict):
    """A method and its settings."""

    name: Literal["dense", "magnitude", "wina", "teal", "cats", "r_sparse", "larosa"]
    preset: str
    form: Literal["plain", "absorbed", "simulated", "explicit"]
    basis: Literal["pca", "random", "hadamard", "identity", "weight_svd", "output_aware", "learned"]
    """`weight_svd`: right singular vectors of k and gate (WINA's transform). `output_aware`: not orthogonal, one
    explicit transform a block (rotation.explicit). `learned`: orthogonal, tuned from the identity."""
    granularity: Literal["layer", "block", "group", "model"]
    group_size: int = Field(ge=1)
    rotation_dtype: Literal["float64", "model"]
    """`simulated` only: the precision in which activations are rotated (the official code: float64)."""
    transform_storage: Literal["model", "int8", "int4"]
    """`explicit` only: how the transform is stored; in int8 and int4 it is what runs and what is counted."""
    block_size: Annotated[int, Field(ge=1)] | None
    """`explicit` only: channels of each diagonal block of the transform; null is one whole D x D."""
    tuning: TuningConfig | None
    """`explicit` and `learned`: gradient steps; null leaves the closed form."""
    rule: Literal["top_k", "threshold"]
    """`top_k`: exactly k channels a token; `threshold`: what exceeds a limit calibrated in the same coordinates."""
    top_k: TopKConfig
    score: Literal["magnitude", "column_norm"]
    """What Top-K ranks by: `|x_i|`, or `|x_i|` times the norm of the weight column behind channel i (WINA)."""
    rank_share: Share
    """`r_sparse` only: weights of the low-rank pair behind each projection / weights of the projection."""
    rank_search: tuple[Share, ...]
    """`r_sparse` only: shares tried at each site for the net bytes of `rank_share`; empty: `rank_share` everywhere."""

    @property
    def coordinates(self) -> str:
        """What decides the basis that activations are dropped in: thresholds hold in their own alone."""
        size = self.group_size if self.granularity == "group" else 0
        tuned = self.tuning.model_dump_json() if self.tuning else None
        if self.form == "plain":
            return "the model's own basis"
        parts = (self.basis, self.granularity, size or None, self.block_size, tuned)
        named = ", ".join(str(part) for part in parts if part is not None)
        stored = f", {self.transform_storage}" if self.form == "explicit" else ""
        return f"{self.form}, {named}{stored}"

    @property
    def label(self) -> str:
        """How tables and figures name it: the preset, and of a rotated method what kind of rotation."""
        if self.name == "r_sparse":
            low_rank = "searched, +{:g} % bytes" if self.rank_search else "{:g} % low-rank"
            return f"{self.preset} ({low_rank.format(100 * self.rank_share)}{', top_k' * (self.rule == 'top_k')})"
        if self.form == "plain":
            return self.preset + (" (threshold)" if (self.name, self.rule) == ("magnitude", "threshold") else "")
        share = f"group of {self.group_size}" if self.granularity == "group" else self.granularity
        if self.rule == "threshold":
            share = f"{share}, threshold"
        if self.form == "explicit":
            share = f"{share}, {self.transform_storage}" + (f", blocks of {self.block_size}" if self.block_size else "")
        if self.tuning:
            share = f"{share}, tuned" if self.form == "explicit" else share
        ranked = ", column norms" if self.score == "column_norm" else ""
        return f"{self.preset} ({self.form}, {self.basis}, per {share}{ranked})"

    @model_validator(mode="after")
    def _low_rank(self) -> MethodConfig:
        if self.name != "r_sparse" and (self.rank_share or self.rank_search):
            raise ValueError(f"method={self.name} has no low-rank part: method.rank_share must be 0, rank_search []")
        if self.name == "r_sparse" and not (self.rank_share or self.rank_search):
            raise ValueError("method=r_sparse without a low-rank part is method=magnitude: set method.rank_share")
        if len(set(self.rank_search)) < len(self.rank_search):
            raise ValueError("method.rank_search names a share twice")
        return self

    @model_validator(mode="after")
    def _possible(self) -> MethodConfig:
        if self.name == "larosa" and self.form == "plain":
            raise ValueError("method.form must be absorbed, simulated or explicit for larosa")
        if (self.rule == "threshold") != (self.name in ("teal", "cats")) and self.name not in _BOTH_RULES:
            raise ValueError("method.rule: teal and cats are threshold, dense and wina top_k; others take both")
        if self.rule == "threshold" and self.score != "magnitude":
            raise ValueError("method.score=column_norm ranks for Top-K; with method.rule=threshold it has no meaning")
        if self.name == "dense" and self.score != "magnitude":
            raise ValueError("method=dense ranks nothing: method.score must be magnitude")
        if self.name == "wina" and (self.form, self.basis) in {("absorbed", "weight_svd"), ("plain", "identity")}:
            return self
        if self.name == "wina":
            raise ValueError("method=wina is plain with basis identity, or absorbed with basis weight_svd")
        if (self.basis == "output_aware") != (self.form == "explicit") or (
            self.form == "explicit" and self.granularity != "block"
        ):
            raise ValueError(
                "method.basis=output_aware and method.form=explicit go together, with method.granularity=block "
                "(the preset method=larosa/output_aware sets all three)"
            )
        if self.tuning and self.form != "explicit" and self.basis != "learned":
            raise ValueError("method.tuning belongs to method.form=explicit or method.basis=learned; set it to null")
        if self.basis == "learned" and (self.form != "absorbed" or self.tuning is None):
            raise ValueError(
                "method.basis=learned is absorbed and needs method.tuning (the preset method=larosa/learned has both)"
            )
        if self.block_size is not None and self.form != "explicit":
            raise ValueError("method.block_size belongs to method.form=explicit; set it to null")
        if self.basis == "weight_svd" and (self.form, self.granularity) != ("absorbed", "block"):
            raise ValueError("method.basis=weight_svd is absorbed, per block: k and gate have a basis each")
        if self.name != "larosa" and (self.form != "plain" or self.basis != "identity"):
            raise ValueError(f"method={self.name} has no rotation: method.form must be plain, method.basis identity")
        return self
