"""Absorb rotations into the weights: no forked modeling code, exact at level 0.

RMSNorm(x Q) = RMSNorm(x) Q for orthogonal Q once the norm's weight gamma is folded into the linears behind it
(section 2 of the paper). So, with the residual stream of layer l in basis Q_l:

* q, k, v, gate, up: `W <- W diag(gamma) Q`; head: the same with the last basis; norms: gamma <- 1;
* o, down: `W <- Q^T W`, bias `b <- b Q`; embedding: `E <- E Q_0` (untied from the head first);
* before layer l a residual adapter `Q_{l-1}^T Q_l` where the basis changes;
* per sublayer, the stream keeps the basis of h1 through the layer and the input of the MLP's norm is rotated
  into that of h3: a second adapter per layer.

All products run in float64 and are cast back once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from larosa.models.architecture import ModelView
from larosa.rotation.online import OnlineTransform, split_gain
from larosa.rotation.rotation import ResidualAdapter, Rotation

_ROWS = 16_384


class WeightSwaps:
    """Puts new tensors in the place of parameters and remembers the old ones.

    `keep`: `device` leaves the old weights where they are, `cpu` moves them to main memory meanwhile. New tensors take
    no gradient.
    """

    def __init__(self, keep: str = "device") -> None:
        self._keep = keep
        self._undo: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._homes: dict[int, tuple[nn.Parameter, torch.device]] = {}
        self._made: dict[int, nn.Parameter] = {}
        self.discarded = False

    def swap(self, module: nn.Module, name: str, tensor: Tensor) -> None:
        """Replace the parameter `name` of `module` by `tensor`, cast to the old dtype and device.

        Of what is swapped twice, the first old one is remembered.
        """
        old: nn.Parameter = module.get_parameter(name)
        if id(old) in self._made:
            new = nn.Parameter(tensor.to(device=old.device, dtype=old.dtype), requires_grad=False)
            self._made.pop(id(old))
            self._put(module, name, new)
            return
        device = self._homes[id(old)][1] if id(old) in self._homes else old.device
        new = nn.Parameter(tensor.to(device=device, dtype=old.dtype), requires_grad=False)
        if self.discarded:
            self._put(module, name, new)
            return
        self._undo.append((module, name, old))
        self._homes.setdefault(id(old), (old, old.device))
        self._put(module, name, new)
        if self._keep == "cpu":
            old.data = old.data.cpu()

    def _put(self, module: nn.Module, name: str, new: nn.Parameter) -> None:
        self._made[id(new)] = new
        setattr(module, name, new)

    @property
    def kept_bytes(self) -> int:
        """Bytes that the remembered weights occupy."""
        return sum(p.numel() * p.element_size() for p, _ in self._homes.values())

    @property
    def frozen(self) -> bool:
        """Whether a parameter that took gradients is replaced by a tensor that takes none."""
        return any(p.requires_grad for p, _ in self._homes.values())

    def replaced(self) -> Iterator[tuple[nn.Module, str, nn.Parameter]]:
        """Module, name and old parameter of everything that is replaced now."""
        yield from self._undo

    def discard(self) -> None:
        """Forget the old parameters, also of later swaps: nothing can be restored any more."""
        self.discarded = True
        self._undo.clear()
        self._homes.clear()

    def restore(self) -> None:
        """Restore every old parameter object, so tied weights are tied again."""
        for parameter, device in self._homes.values():
            parameter.data = parameter.data.to(device)
        for module, name, old in reversed(self._undo):
            setattr(module, name, old)
        self._undo.clear()
        self._homes.clear()
        self._made.clear()


def right_product(weight: Tensor, scale: Tensor | None, matrix: Tensor) -> Tensor:
    """weight [n, D] diag(scale) matrix [D, D], in float64 by blocks of rows, cast back to weight's dtype."""
    out = torch.empty_like(weight)
    matrix = matrix.to(weight.device).double()
    factor = matrix if scale is None else scale.to(weight.device).double()[:, None] * matrix
    for start in range(0, len(weight), _ROWS):
        out[start : start + _ROWS] = weight[start : start + _ROWS].double() @ factor
    return out


def absorb(
    view: ModelView, rotation: Rotation, swaps: WeightSwaps
) -> tuple[list[ResidualAdapter], list[RemovableHandle]]:
    """Rotate the model into the rotation's bases. Returns its adapters and the hooks that run them."""
    adapters: list[ResidualAdapter] = []
    hooks: list[RemovableHandle] = []

    def adapt(module: nn.Module, Q_from: Tensor, Q_to: Tensor) -> None:
        weight = next(module.parameters())
        adapters.append(ResidualAdapter(Q_from, Q_to, weight.dtype, weight.device))
        hooks.append(module.register_forward_pre_hook(_adapter_hook(adapters[-1]), with_kwargs=True))

    for layer in tqdm(view.layers, desc="absorb", unit="layer", leave=False):
        stream = rotation.at(layer.index, "h1")
        before, (attention, mlp) = rotation.index[max(layer.index - 1, 0)][0], rotation.index[layer.index]
        if before != attention:
            adapt(layer.module, rotation.matrices[before], stream)
        if attention != mlp:
            adapt(layer.norm("h3"), stream, rotation.at(layer.index, "h3"))
        for site in ("h1", "h3"):
            fold(layer.norm(site), layer.consumers(site), rotation.at(layer.index, site), swaps)
        for linear in layer.writers():
            _rotate_output(linear, stream, swaps)
    first, last = rotation.at(0, "h1"), rotation.at(len(view.layers) - 1, "h1")
    embedding, head = view.embedding, view.head
    rotated = right_product(embedding.weight, None, first)
    fold(view.final_norm, [head], last, swaps)
    swaps.swap(embedding, "weight", rotated)
    return adapters, hooks


def fold(
    norm: nn.Module, consumers: list[nn.Linear], Q: Tensor, swaps: WeightSwaps, gain: Tensor | None = None
) -> None:
    """Fold gamma and a matrix Q [D, D] into the consumers of a norm: `W <- W diag(gamma / gain) Q`, gamma <- gain.

    gain [D] > 0: what the norm multiplies by from now on; None is ones.
    """
    gamma = norm.get_parameter("weight")
    new = torch.ones_like(gamma) if gain is None else gain.to(gamma)
    scale = gamma.double() / new.double()
    for linear in consumers:
        swaps.swap(linear, "weight", right_product(linear.weight, scale, Q))
    swaps.swap(norm, "weight", new)


def fold_transforms(
    view: ModelView, transforms: Tensor, storage: str, swaps: WeightSwaps
) -> dict[tuple[int, str], OnlineTransform]:
    """Fold the inverses of `transforms` [layers, 2, n, b, b] float64 into the consumers of h1 and h3, their gains into
    the norms; returns (layer, site) -> T', what is left to run online.

    T' is inverted as stored, so that rounding it to int8 or int4 does not change the model at level 0.
    """
    folded: dict[tuple[int, str], OnlineTransform] = {}
    for layer in tqdm(view.layers, desc="transforms", unit="layer", leave=False):
        for i, site in enumerate(("h1", "h3")):
            weight = layer.consumers(site)[0].weight
            exact, gain = split_gain(transforms[layer.index, i].to(weight.device))
            transform = OnlineTransform(exact, storage, weight.dtype)
            fold(layer.norm(site), layer.consumers(site), transform.inverse(), swaps, gain)
            folded[layer.index, site] = transform
    return folded


def _rotate_output(linear: nn.Linear, Q: Tensor, swaps: WeightSwaps) -> None:
    swaps.swap(linear, "weight", Q.to(linear.weight.device).double().T @ linear.weight.double())
    if linear.bias is not None:
        swaps.swap(linear, "bias", linear.bias.double() @ Q.to(linear.bias.device).double())


def _adapter_hook(adapter: ResidualAdapter) -> Callable[..., Any]:
    def hook(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (adapter(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": adapter(kwargs["hidden_states"])}

    return hook
