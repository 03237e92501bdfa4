"""Settings of `larosa.sparsify`: those of `run.py` that determine a sparse model, from the same `conf/`.

Neither torch nor Hydra is needed to read them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from larosa.config.base import readable
from larosa.config.choices import choice, choices
from larosa.config.method import LarosaConfig, Method
from larosa.config.run import (
    CoefficientsConfig,
    Level,
    MethodConfig,
    ScheduleConfig,
    Strict,
    TokenPolicyConfig,
    TuningConfig,
    schedule_path,
)
from larosa.errors import ArgumentError

LARGEST_SEED = 2**63 - 1


class SparsityConfig(Strict):
    """A method at one target sparsity, and how it is calibrated and applied."""

    method: Method
    sparsity: Level
    """Target sparsity, a fraction in [0, 1)."""
    schedule: ScheduleConfig
    token_policy: TokenPolicyConfig
    model_name: str | None = None
    """The model's name in `conf/model`: the row of `schedule=paper`, the folder of a bare `schedule.path`."""
    dense_weights_device: Literal["device", "cpu"] = "device"
    """Where the dense weights are kept until `remove()`."""
    batch_size: int = Field(default=1, ge=1)
    """Calibration sequences per forward pass."""
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)
    """Of random bases and of the order in which tuning draws sequences."""

    @classmethod
    def read(
        cls,
        method: str | Mapping[str, Any] | MethodConfig = "larosa",
        schedule: str | Mapping[str, Any] | ScheduleConfig = "official",
        token_policy: str | Mapping[str, Any] | TokenPolicyConfig = "all",
        settings: Mapping[str, Any] | None = None,
        **other: Any,
    ) -> SparsityConfig:
        """Names of `conf/method`, `conf/schedule` and `conf/token_policy`, or their contents, changed by `settings`.

        Keys of `settings` are run.py's: `method.block_size`, `schedule.metric`, `token_policy.n`. Raises ArgumentError.
        """
        tree: dict[str, Any] = {
            "method": _group("method", method),
            "schedule": _group("schedule", schedule),
            "token_policy": _group("token_policy", token_policy),
        }
        _change(tree, {} if settings is None else settings)
        if tree["method"].get("name") == "dense":
            other["sparsity"] = 0.0  # as run.py does: the dense model drops nothing at any target
        if "sparsity" not in other:
            raise ArgumentError("give the target sparsity: sparsity=0.4, a fraction in [0, 1)")
        try:
            return cls.model_validate(tree | other)._named()
        except ValidationError as error:
            raise ArgumentError(
                readable(error, spelling="conf/method, conf/schedule and conf/token_policy show the keys")
            ) from None

    def _named(self) -> SparsityConfig:
        """The same with the whole path of a schedule file. Raises ArgumentError where the model's name is missing."""
        path, name = self.schedule.path, self.model_name
        bare = path is not None and schedule_path(path, "") != path
        if self.schedule.kind == "paper_table11" and name is not None and name not in _named():
            raise ArgumentError(f"model_name={name!r} is not in conf/model: {', '.join(_named())}")
        if bare and name is None:
            raise ArgumentError(
                f"schedule.path={path} lies in schedules/<model_name>: say model_name=..., or FILE.json"
            )
        given = self.schedule.model_copy(update={"path": schedule_path(path, name or "")})
        return self.model_copy(update={"schedule": given})


class LaRoSAConfig(Strict):
    """Settings of LaRoSA, named as in `conf/method` and `conf/schedule`; defaults as in `method=larosa/paper`."""

    sparsity: Level
    """Target sparsity, a fraction in [0, 1)."""
    coefficients: CoefficientsConfig = CoefficientsConfig(h1=0.8, h2=1.2, h3=0.8, h4=1.2)
    """Per site; the official code's by default."""
    metric: Literal["weight_bytes", "nominal"] = "weight_bytes"
    """`weight_bytes`: `sparsity` is the weight sparsity of the seven projections (whole models only)."""
    form: Literal["absorbed", "simulated", "online"] = "absorbed"
    basis: Literal["pca", "random", "hadamard", "identity", "weight_svd", "output_aware", "learned"] = "pca"
    granularity: Literal["layer", "sublayer", "group", "model"] = "layer"
    group_size: int = Field(default=4, ge=1)
    rotation_dtype: Literal["float64", "model"] = "float64"
    transform_dtype: Literal["model", "int8", "int4"] = "model"
    block_size: int | None = Field(default=None, ge=1)
    tuning: TuningConfig | None = None
    selector: Literal["top_k", "threshold"] = "top_k"
    ties: Literal["strict", "keep"] = "strict"
    rounding: Literal["nearest", "down"] = "nearest"
    importance: Literal["magnitude", "column_norm"] = "magnitude"
    token_policy: TokenPolicyConfig = TokenPolicyConfig(kind="all", n=0, fraction=1.0)
    dense_weights_device: Literal["device", "cpu"] = "device"
    batch_size: int = Field(default=1, ge=1)
    """Calibration sequences per forward pass."""
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED)

    @classmethod
    def parse(cls, given: object) -> LaRoSAConfig:
        """The settings themselves, or a mapping of them. Raises ArgumentError."""
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            raise ArgumentError(
                f"config must be a LaRoSAConfig or a mapping of its settings, got {type(given).__name__}"
                + (f": say sparsity={given}" if isinstance(given, float) else "")
                + (f": say method={given!r}, sparsity=..." if isinstance(given, str) else "")
            )
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            raise ArgumentError(readable(error, cls, f"LaRoSAConfig has {', '.join(cls.model_fields)}")) from None

    def whole(self) -> SparsityConfig:
        """The same in the sections of a run. Raises ValidationError where settings do not go together."""
        settings = LarosaConfig.own_keys() - {"name", "preset"}
        method = LarosaConfig(name="larosa", preset="larosa", **self.model_dump(include=set(settings)))
        schedule = ScheduleConfig(
            name="given", kind="coefficients", coefficients=self.coefficients, table={}, path=None, metric=self.metric
        )
        return SparsityConfig(
            method=method, sparsity=self.sparsity, schedule=schedule, token_policy=self.token_policy,
            dense_weights_device=self.dense_weights_device, batch_size=self.batch_size, seed=self.seed,
        )  # fmt: skip

    @model_validator(mode="after")
    def _possible(self) -> LaRoSAConfig:
        try:
            self.whole()
        except ValidationError as error:
            raise ValueError(readable(error)) from None
        return self


def hub_name(source: str) -> str | None:
    """The name in `conf/model` of the model that the hub calls `source`; None where there is none."""
    return next((name for name, hub_id in _named().items() if source and hub_id == source), None)


def _named() -> dict[str, str | None]:
    """Name -> hub id of the models in `conf/model` that are one model; local and hub take any."""
    models = {name: choice("model", name) for name in choices("model")}
    return {name: model["hub_id"] for name, model in models.items() if model["shape"] is not None}


def _group(group: str, given: object) -> dict[str, Any]:
    """The contents of one section, by name or as they are."""
    if isinstance(given, BaseModel):
        return given.model_dump()
    if isinstance(given, Mapping):
        return dict(given)
    if not isinstance(given, str) or given not in choices(group):
        raise ArgumentError(f"{group}={given!r} is not known; expected one of {', '.join(choices(group))}")
    return choice(group, given)


def _change(tree: dict[str, Any], settings: object) -> None:
    """Replace values by their dotted names; the result is validated with the rest."""
    if not isinstance(settings, Mapping):
        raise ArgumentError(f"settings must map names to values, got {type(settings).__name__}")
    for key, value in settings.items():
        *path, last = str(key).split(".")
        if not path or path[0] not in tree:
            raise ArgumentError(f"settings: {key!r} must begin with {', '.join(f'{group}.' for group in tree)}")
        node: Any = tree
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ArgumentError(f"settings: {key!r} is no setting, {'.'.join(path)} has no parts here")
        node[last] = os.fspath(value) if isinstance(value, os.PathLike) else value
    open_ = [f"{group}.{key}" for group, node in tree.items() for key, value in node.items() if value == "???"]
    if open_:
        raise ArgumentError(f"{', '.join(open_)} must be given: settings={{'{open_[0]}': ...}}")
