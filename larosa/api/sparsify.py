"""The Python interface: the pieces that `run.py` is made of, for use without Hydra.

    import larosa

    handle = larosa.sparsify(model, tokens, sparsity=0.4)          # tokens: [N, T] int64
    model.generate(...)                                            # sparse
    handle.kept_bytes                                              # memory of the dense weights that wait
    handle.remove()                                                # the model is as before, bit for bit

`LaRoSAActivationSparsifier` shows the method on one activation tensor, without a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from larosa.api.arguments import checked_model, frozen, token_block
from larosa.api.settings import LaRoSAConfig as LaRoSAConfig
from larosa.api.settings import SparsityConfig, hub_name
from larosa.calibration.calibrator import Calibrator
from larosa.config.run import MethodConfig, ScheduleConfig, TokenPolicyConfig
from larosa.errors import ArgumentError
from larosa.methods.planning import check_method, levels_of, plan_of
from larosa.models.inputs import check_activations
from larosa.models.sites import ModelShape
from larosa.rotation import bases
from larosa.rotation.rotation import LayerwiseRotationMatrix
from larosa.sparsity.handle import SparsityHandle, apply
from larosa.sparsity.top_k import TopKSparsification

_BASES = ("pca", "random", "hadamard", "identity")


class LaRoSAActivationSparsifier(nn.Module):
    """Rotate, keep the largest magnitudes, rotate back: LaRoSA on one activation tensor.

    The level of a block is coefficient * sparsity: h1's coefficient for "attention", h3's for "mlp". (Rescaling to a
    weight sparsity needs a model's shape: see :func:`sparsify`.) Of the configuration, sparsity,
    coefficients, basis, ties and seed apply to a single tensor; settings that need a model are refused.

    The state holds the rotation, that it is fitted, and which basis and seed it is of. It loads into a sparsifier of
    the same width, basis and seed (ArgumentError otherwise), at any level: one rotation serves all.
    """

    fitted: Tensor
    origin: Tensor

    def __init__(self, hidden_size: int, config: LaRoSAConfig | Mapping[str, Any]) -> None:
        super().__init__()
        self.config = config = LaRoSAConfig.parse(config)
        plain = (config.selector, config.importance, config.token_policy.kind) == ("top_k", "magnitude", "all")
        if config.basis not in _BASES or not plain or config.bias_compensation != "none":
            raise ArgumentError(
                f"one activation tensor takes basis {', '.join(_BASES)}, selector=top_k, importance=magnitude, "
                "bias_compensation=none and all tokens; larosa.sparsify takes the rest"
            )
        self.rotation = LayerwiseRotationMatrix(hidden_size)
        levels = {"attention": config.coefficients.h1, "mlp": config.coefficients.h3}
        self.top_k = nn.ModuleDict(
            {
                block: TopKSparsification(hidden_size, _level(block, alpha, config.sparsity), config.ties)
                for block, alpha in levels.items()
            }
        )
        seeded = config.seed if config.basis in ("random", "hadamard") else 0
        self.register_buffer("fitted", torch.tensor(config.basis == "identity"))
        self.register_buffer("origin", torch.tensor([_BASES.index(config.basis), seeded]))
        self.register_load_state_dict_pre_hook(_check_state)  # type: ignore[no-untyped-call]

    def compute_rotation_matrix(self, calibration_activations: Tensor) -> Tensor:
        """Set Q for activations [..., hidden_size] and return it, [hidden_size, hidden_size] float64.

        `basis=pca` fits Q to them; the other bases need only their width. Raises ArgumentError on NaN, on another
        width, or on fewer vectors than dimensions, BasisError where there is no Hadamard matrix.
        """
        D = self.rotation.Q.shape[0]
        check_activations(calibration_activations, D)
        if self.config.basis == "pca":
            self.rotation.fit(calibration_activations)
        elif self.config.basis != "identity":
            make = bases.random if self.config.basis == "random" else bases.hadamard
            self.rotation.Q = make(D, self.config.seed).to(self.rotation.Q.device).contiguous()
        self.fitted.fill_(True)
        return self.rotation.Q

    def forward(self, activation: Tensor, block_type: str = "attention") -> Tensor:
        """activation: [..., hidden_size], any float dtype; returns the same shape and dtype."""
        if block_type not in self.top_k:
            raise ArgumentError(f"block_type must be 'attention' or 'mlp', got {block_type!r}")
        if not self.fitted:
            raise ArgumentError("call compute_rotation_matrix(calibration_activations) first: there is no rotation yet")
        check_activations(activation, self.rotation.Q.shape[0], self.rotation.Q.device)
        z = self.rotation.rotate(activation)
        return self.rotation.unrotate(self.top_k[block_type](z)).to(activation.dtype)


def _level(block: str, alpha: float, sparsity: float) -> float:
    if not alpha * sparsity < 1:
        raise ArgumentError(f"{block}: coefficient {alpha:g} * sparsity {sparsity:g} must stay below 1")
    return alpha * sparsity


def _check_state(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Refuse the state of a sparsifier of another width, basis or seed, before anything is copied."""
    assert isinstance(module, LaRoSAActivationSparsifier)
    width, loaded = module.rotation.Q.shape[0], state.get(f"{prefix}rotation.Q")
    if loaded is not None and tuple(loaded.shape) != (width, width):
        raise ArgumentError(f"the state is of width {loaded.shape[-1]}, this sparsifier is of width {width}")
    origin = state.get(f"{prefix}origin")
    if origin is not None and not torch.equal(origin.cpu(), module.origin.cpu()):
        (theirs, their_seed), (ours, our_seed) = origin.tolist(), module.origin.tolist()
        raise ArgumentError(
            f"the state is of basis={_BASES[theirs]}, seed {their_seed}; this sparsifier is of basis={_BASES[ours]}, "
            f"seed {our_seed}: make it with the configuration that the state was saved under"
        )


def sparsify(
    model: PreTrainedModel,
    tokens: Tensor | list[list[int]] | Mapping[str, Any],
    config: LaRoSAConfig | Mapping[str, Any] | None = None,
    *,
    sparsity: float | None = None,
    method: str | Mapping[str, Any] | MethodConfig | None = None,
    schedule: str | Mapping[str, Any] | ScheduleConfig | None = None,
    token_policy: str | Mapping[str, Any] | TokenPolicyConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    model_name: str | None = None,
    dense_weights_device: Literal["device", "cpu"] | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    cache: bool = False,
) -> SparsityHandle:
    """Calibrate a method on `tokens` and make a transformers causal model follow it, in place.

    What it shall follow is said by name, with the names and defaults of `run.py`, or by a `config` alone:

        sparsify(model, tokens, sparsity=0.4)                                   # method=larosa schedule=official
        sparsify(model, tokens, sparsity=0.4, method="larosa/tuned", settings={"method.tuning.steps": 300})
        sparsify(model, tokens, sparsity=0.4, method="teal", schedule="uniform", token_policy="skip_first_n")
        sparsify(model, tokens, LaRoSAConfig(sparsity=0.4))                     # larosa/paper, each setting by name

    Args:
        model: a causal model, with floating weights in memory and without dropout at work (`model.eval()`).
        tokens: calibration token ids, [N, T] int64 or anything that is one (see :mod:`larosa.api.arguments`).
        config: LaRoSA's settings, or a mapping of them; then `cache` is the only keyword.
        sparsity: the target, a fraction in [0, 1); weight sparsity of the seven projections unless `schedule.metric` is
            `nominal`.
        method: a name in `conf/method` (default `larosa`), or a method's settings.
        schedule: a name in `conf/schedule` (default `official`), or a schedule's settings.
        token_policy: a name in `conf/token_policy` (default `all`), or a policy's settings.
        settings: changes to these three by run.py's names: `method.block_size`, `schedule.path`, `token_policy.n`.
        model_name: the model's name in `conf/model`, for `schedule=paper` and bare names of schedule files; found out
            for a model from the hub.
        dense_weights_device: where the dense weights wait for `remove()`: `device` (default) or `cpu`.
        batch_size: calibration sequences per forward pass, 1 by default; a larger one is faster and takes more memory.
        seed: of random bases and of tuning, 0 by default.
        cache: keep calibration tensors in larosa's cache folder, by a hash of the weights, and read them from there.

    Returns the handle whose `remove()` restores the model. Raises LarosaError, in particular ArgumentError (which is a
    ValueError, too) for what is wrong with an argument; the model is then as it was.
    """
    given: dict[str, Any] = {
        "sparsity": sparsity, "method": method, "schedule": schedule, "token_policy": token_policy,
        "settings": settings, "model_name": model_name, "dense_weights_device": dense_weights_device,
        "batch_size": batch_size, "seed": seed,
    }  # fmt: skip
    named = {key: value for key, value in given.items() if value is not None}
    if config is not None and named:
        raise ArgumentError(f"config says everything already: leave out {', '.join(named)}, or config")
    chosen = SparsityConfig.read(**named) if config is None else LaRoSAConfig.parse(config).whole()
    model = checked_model(model)
    block, shape = token_block(tokens, model), ModelShape.of(model.config)
    check_method(chosen.method, shape, block.ids.numel(), "give more or longer sequences as tokens")
    levels = levels_of(chosen, shape, _name(chosen, model))
    with frozen(model):
        calibrator = Calibrator(model, block, _fingerprint(model) if cache else None, chosen.batch_size, chosen.seed)
        return apply(model, plan_of(chosen, levels, calibrator), chosen.dense_weights_device)


def _name(chosen: SparsityConfig, model: PreTrainedModel) -> str:
    """What the schedule calls the model. Raises ArgumentError where it must know and does not."""
    if chosen.schedule.kind != "paper_table11" or chosen.model_name is not None:
        return chosen.model_name or model.config.model_type
    name = hub_name(model.config.name_or_path or "")
    if name is None:
        raise ArgumentError(
            "schedule=paper has coefficients for each model, and the name of this one is not known: "
            f"say model_name=... ({', '.join(chosen.schedule.table)}), or take schedule='constrained'"
        )
    return name


def _fingerprint(model: PreTrainedModel) -> dict[str, str]:
    """A hash of weights, configuration and modules."""
    sha256 = hashlib.sha256(f"{model!r}{model.config.to_json_string(use_diff=False)}".encode())
    for name, tensor in model.state_dict().items():
        sha256.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        sha256.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return {"weights": sha256.hexdigest()}
