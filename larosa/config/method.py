"""Settings of the methods: one class per method, selected by `name`.

A method's YAML holds its own keys only. Settings that other code reads of any method, such as its form or selector, are
fields of :class:`MethodConfig`; a method without such a setting has the value given there. Settings that change a
result have no default here: their values are in ``conf/method``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    TypeAdapter,
    model_serializer,
    model_validator,
)

from larosa.config.base import Strict
from larosa.config.tuning import TuningConfig

Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]
BiasCompensation = Literal["none", "mean"]
Exponent = Annotated[float, Field(ge=0.0, le=1.0)]
Form = Literal["plain", "absorbed", "simulated", "online"]
Basis = Literal["pca", "random", "hadamard", "identity", "weight_svd", "output_aware", "learned"]
Granularity = Literal["layer", "sublayer", "group", "model"]
Selector = Literal["top_k", "threshold"]
Ties = Literal["strict", "keep"]
Rounding = Literal["nearest", "down"]
Importance = Literal["magnitude", "column_norm"]


class MethodConfig(Strict):
    """The fields of every method; a subclass declares again the settings that it has."""

    name: str
    """Name of the method."""
    preset: str
    """Name of the YAML in `conf/method`; tables and figures show it."""
    form: Form = "plain"
    """`plain`: the model's own basis. `absorbed`: rotated weights (the paper). `simulated`: activations are rotated
    and rotated back (the official code). `online`: a transform runs before each norm's consumers."""
    basis: Basis = "identity"
    """`pca`: eigenvectors of the activations' covariance (the paper). `random`, `hadamard`, `identity`: for comparison.
    `weight_svd`: right singular vectors of k and gate (WINA's transform). `output_aware`: not orthogonal, one online
    transform per sublayer (`larosa.rotation.online`). `learned`: orthogonal, tuned from the identity."""
    granularity: Granularity = "layer"
    """Layers or sublayers that share a basis: one basis per layer, per sublayer, per group of layers, or one for the
    model."""
    group_size: int = Field(default=1, ge=1)
    """`granularity=group`: number of layers that share a basis."""
    rotation_dtype: Literal["float64", "model"] = "float64"
    """`simulated`: the precision in which activations are rotated (the official code: float64)."""
    transform_dtype: Literal["model", "int8", "int4"] = "model"
    """`online`: storage of the transform. int8 and int4 transforms run and are counted in that format."""
    block_size: Annotated[int, Field(ge=1)] | None = None
    """`online`: channels per diagonal block of the transform; null: one full D x D matrix."""
    tuning: TuningConfig | None = None
    """`online` and `learned`: gradient steps; null leaves the closed form."""
    selector: Selector = "top_k"
    """`top_k`: exactly k channels per token; `threshold`: channels above a threshold calibrated in the same basis."""
    ties: Ties = "strict"
    """`strict`: exactly k channels are kept; of equal importance, the lowest index wins. `keep`: all channels at least
    as important as the k-th are kept."""
    rounding: Rounding = "nearest"
    """`nearest`: k is the integer nearest to (1 - level) * width. `down`: the integer below, as in the official code of
    LaRoSA and WINA."""
    importance: Importance = "magnitude"
    """What entries are ranked by. `magnitude`: `|x_i|`. `column_norm`: `|x_i|` times the L2 norm of weight column i
    (WINA)."""
    importance_exponent: Exponent = 1.0
    """`importance=column_norm`: p of `|x_i| * norm_i^p`. 1: column norms; 0: magnitude."""
    bias_compensation: BiasCompensation = "none"
    """`mean`: the mean effect of what a site drops, W E[x - S(x)], is added to its projections as a constant vector."""
    low_rank_ratio: Ratio = 0.0
    """Weights of the low-rank pair over weights of the projection (R-Sparse)."""
    low_rank_ratio_grid: tuple[Ratio, ...] = ()
    """Ratios tried per site, at the total bytes of `low_rank_ratio`; empty: `low_rank_ratio` at every site."""

    _SHARED: ClassVar[frozenset[str]] = frozenset({"name", "preset"})

    @classmethod
    def own_keys(cls) -> frozenset[str]:
        """The settings that this method has: the fields without a default."""
        return frozenset(key for key, field in cls.model_fields.items() if field.is_required())

    @model_validator(mode="before")
    @classmethod
    def _own_keys_only(cls, given: Any) -> Any:
        """Refuse another method's key by naming the methods that have it."""
        foreign = (
            sorted(set(given) & set(MethodConfig.model_fields) - cls.own_keys()) if isinstance(given, Mapping) else []
        )
        if foreign:
            has = ", ".join(sorted(cls.own_keys() - cls._SHARED)) or "none"
            raise ValueError(f"{foreign_key(foreign[0], str(given.get('name')))}; its settings: {has}")
        return given

    @model_serializer(mode="wrap")
    def _own_settings(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if key in self.own_keys()}

    def with_defaults(self) -> dict[str, Any]:
        """Every field, including those that the method does not have; they determine its coordinates and its
        tensors."""
        return {key: value.model_dump(mode="json") if isinstance(value, Strict) else value for key, value in self}

    @property
    def norm_exponent(self) -> float:
        """p of the importance `norm_i^p`; 0 where magnitudes rank."""
        return self.importance_exponent if self.importance == "column_norm" else 0.0

    @property
    def _importance_label(self) -> str:
        """What entries are ranked by beside their magnitude; empty for magnitude."""
        p = self.norm_exponent
        return ("column norms" + ("" if p == 1.0 else f" ^ {p:g}")) if p else ""

    @property
    def coordinates(self) -> str:
        """The basis in which activations are dropped; thresholds are valid in the basis that they were calibrated
        in."""
        size = self.group_size if self.granularity == "group" else 0
        tuned = self.tuning.model_dump_json() if self.tuning else None
        ranked = f", times {self._importance_label}" if self.norm_exponent else ""
        if self.form == "plain":
            return f"the model's own basis{ranked}"
        parts = (self.basis, self.granularity, size or None, self.block_size, tuned)
        named = ", ".join(str(part) for part in parts if part is not None)
        stored = f", {self.transform_dtype}" if self.form == "online" else ""
        return f"{self.form}, {named}{stored}{ranked}"

    @property
    def label(self) -> str:
        """Name in tables and figures: the preset, a selector that it does not tell, and the kind of rotation."""
        if self.form == "plain":
            told = ["threshold"] if self.selector == "threshold" and "selector" in self.own_keys() else []
            told += [self._importance_label or "magnitude"] if self.importance_exponent != 1.0 else []
            told += ["bias compensation"] if self.bias_compensation == "mean" else []
            return self.preset + (f" ({', '.join(told)})" if told else "")
        share = f"group of {self.group_size}" if self.granularity == "group" else self.granularity
        if self.selector == "threshold":
            share = f"{share}, threshold"
        if self.form == "online":
            share = f"{share}, {self.transform_dtype}" + (f", block size {self.block_size}" if self.block_size else "")
        if self.tuning:
            share = f"{share}, tuned" if self.form == "online" else share
        ranked = f", {self._importance_label}" if self.norm_exponent else ""
        ranked += ", bias compensation" if self.bias_compensation == "mean" else ""
        return f"{self.preset} ({self.form}, {self.basis}, per {share}{ranked})"


class DenseConfig(MethodConfig):
    """The dense model: nothing is dropped."""

    name: Literal["dense"]


class MagnitudeConfig(MethodConfig):
    """The largest magnitudes per token are kept, in the model's own basis."""

    name: Literal["magnitude"]
    selector: Selector
    ties: Ties
    rounding: Rounding
    bias_compensation: BiasCompensation


class TealConfig(MethodConfig):
    """TEAL (arXiv 2408.14690): a calibrated threshold per layer and site."""

    name: Literal["teal"]
    selector: Literal["threshold"] = "threshold"
    bias_compensation: BiasCompensation


class CatsConfig(MethodConfig):
    """CATS (arXiv 2404.08763): MLP neurons whose gate is below a calibrated threshold are skipped."""

    name: Literal["cats"]
    selector: Literal["threshold"] = "threshold"


class WinaConfig(MethodConfig):
    """WINA (arXiv 2505.19427): magnitude times column norm, in the model's own basis or in its rotated one."""

    name: Literal["wina"]
    form: Literal["plain", "absorbed"]
    basis: Literal["identity", "weight_svd"]
    granularity: Granularity = "sublayer"
    selector: Selector
    ties: Ties
    rounding: Rounding
    importance: Importance = "column_norm"
    importance_exponent: Exponent
    bias_compensation: BiasCompensation

    @model_validator(mode="after")
    def _possible(self) -> WinaConfig:
        if (self.form, self.basis) not in {("absorbed", "weight_svd"), ("plain", "identity")}:
            raise ValueError("method=wina is plain with basis identity, or absorbed with basis weight_svd")
        return self


class RSparseConfig(MethodConfig):
    """R-Sparse (arXiv 2504.19449): what a site drops goes through a truncated SVD of each projection."""

    name: Literal["r_sparse"]
    selector: Selector
    ties: Ties
    rounding: Rounding
    low_rank_ratio: Ratio
    low_rank_ratio_grid: tuple[Ratio, ...]

    @property
    def label(self) -> str:
        """The preset, the bytes of its low-rank pairs, and whether it uses Top-K."""
        low_rank = "searched, +{:g} % bytes" if self.low_rank_ratio_grid else "{:g} % low-rank"
        selector = ", top_k" if self.selector == "top_k" else ""
        return f"{self.preset} ({low_rank.format(100 * self.low_rank_ratio)}{selector})"

    @model_validator(mode="after")
    def _possible(self) -> RSparseConfig:
        if not (self.low_rank_ratio or self.low_rank_ratio_grid):
            raise ValueError("method=r_sparse without a low-rank part is method=magnitude: set method.low_rank_ratio")
        if len(set(self.low_rank_ratio_grid)) < len(self.low_rank_ratio_grid):
            raise ValueError("method.low_rank_ratio_grid names a ratio twice")
        return self


class LarosaConfig(MethodConfig):
    """LaRoSA (arXiv 2507.01299) and its extensions: Top-K or thresholds in a rotated basis."""

    name: Literal["larosa"]
    form: Literal["absorbed", "simulated", "online"]
    basis: Basis
    granularity: Granularity
    group_size: int = Field(ge=1)
    rotation_dtype: Literal["float64", "model"]
    transform_dtype: Literal["model", "int8", "int4"]
    block_size: Annotated[int, Field(ge=1)] | None
    tuning: TuningConfig | None
    selector: Selector
    ties: Ties
    rounding: Rounding
    importance: Importance
    importance_exponent: Exponent
    bias_compensation: BiasCompensation

    @model_validator(mode="after")
    def _possible(self) -> LarosaConfig:
        if self.importance == "magnitude" and self.importance_exponent != 1.0:
            raise ValueError(
                "method.importance_exponent belongs to method.importance=column_norm; leave it at 1 with magnitude"
            )
        if (self.basis == "output_aware") != (self.form == "online") or (
            self.form == "online" and self.granularity != "sublayer"
        ):
            raise ValueError(
                "method.basis=output_aware and method.form=online go together, with method.granularity=sublayer "
                "(the preset method=larosa/output_aware sets all three)"
            )
        if self.tuning and self.form != "online" and self.basis != "learned":
            raise ValueError("method.tuning belongs to method.form=online or method.basis=learned; set it to null")
        if self.basis == "learned" and (self.form != "absorbed" or self.tuning is None):
            raise ValueError(
                "method.basis=learned is absorbed and needs method.tuning (the preset method=larosa/learned has both)"
            )
        if self.block_size is not None and self.form != "online":
            raise ValueError("method.block_size belongs to method.form=online; set it to null")
        if self.basis == "weight_svd" and (self.form, self.granularity) != ("absorbed", "sublayer"):
            raise ValueError(
                "method.basis=weight_svd needs method.form=absorbed and method.granularity=sublayer: k and gate have a "
                "basis each"
            )
        return self


METHOD_CONFIGS: tuple[type[MethodConfig], ...] = (
    DenseConfig, MagnitudeConfig, TealConfig, CatsConfig, WinaConfig, RSparseConfig, LarosaConfig,
)  # fmt: skip
METHOD_NAMES = tuple(str(get_args(config.model_fields["name"].annotation)[0]) for config in METHOD_CONFIGS)


def foreign_key(key: str, method: str = "this method") -> str:
    """Error text: the method has no such setting, and which methods have it."""
    pairs = zip(METHOD_NAMES, METHOD_CONFIGS, strict=True)
    owners = ", ".join(name for name, config in pairs if key in config.own_keys())
    return f"{method} has no setting {key}, which belongs to {owners}"


def _name(given: Any) -> Any:
    return given.get("name") if isinstance(given, Mapping) else getattr(given, "name", None)


Method = Annotated[
    Annotated[DenseConfig, Tag("dense")]
    | Annotated[MagnitudeConfig, Tag("magnitude")]
    | Annotated[TealConfig, Tag("teal")]
    | Annotated[CatsConfig, Tag("cats")]
    | Annotated[WinaConfig, Tag("wina")]
    | Annotated[RSparseConfig, Tag("r_sparse")]
    | Annotated[LarosaConfig, Tag("larosa")],
    Discriminator(
        _name,
        custom_error_type="unknown_method",
        custom_error_message=f"method.name: expected one of {', '.join(METHOD_NAMES)}",
    ),
]
"""The settings of one method, told apart by `name`."""


def method_settings(given: Mapping[str, Any]) -> MethodConfig:
    """The settings of the method that `name` says. Raises pydantic's ValidationError."""
    method: MethodConfig = TypeAdapter(Method).validate_python(given)
    return method
