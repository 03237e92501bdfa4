"""GPTQ and AWQ, site by site of a model that a handle made sparse.

In the decoder's formats GPTQ is ours (gptq.py). With groups along the input both are from Intel's neural-compressor:

    pip install -e '.[quantization]'

The library receives the consumers of one site as a small model, with the site's activations as inputs. So rotations,
transforms and hooks of the model are untouched. Layers are quantised in order; each sees the outputs of the quantised
layers before it. Nothing is dropped meanwhile: the quantiser sees level 0.
The first token of a sequence is an attention sink: nearly every later token reads its key and value. In GPTQ's second
moments it is one token of a thousand, so its error grows; `attention_sink_weight` makes it count as more tokens.
Both quantisers give a scale and a zero point to 64 weights along the input. AWQ's scales multiply the input of a
linear, unfolded as in the library. Here they are multiplied into the weights again: a norm or projection that took them
would change what Top-K ranks.

A quantised layer is cached under a hash of its inputs and weights. So levels, methods with equal weights and parallel
processes share it, and an interrupted run continues where it stopped.
"""

from __future__ import annotations

import hashlib
import logging
from contextlib import ExitStack
from functools import cache, partial
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.commands import pip_install
from larosa.config.quantization import QuantizationConfig
from larosa.data import tensor_store
from larosa.models.architecture import SITES, LayerView, ModelView
from larosa.models.formats import GROUP, Quantised, QuantizationError
from larosa.quantization.gptq import fed_back
from larosa.sparsity.handle import SparsityHandle

log = logging.getLogger(__name__)

_VERSION = 1  # raise when the output of our quantiser changes
_LIBRARY = "neural_compressor"
_HERE = "."
"""An existing folder: without one GPTQ asks the hub for a model's name, though it reads no file."""
_BLOCK = GROUP
"""Inputs that GPTQ rounds before it corrects all others at once. Scales are found from weights as the last block left
them: with several groups per block, all but the first would get scales of weights that are not corrected yet."""


def check_installed(config: QuantizationConfig) -> None:
    """Raise QuantizationError where the library of a calibrated quantiser is missing."""
    if config.group_axis == "in" and find_spec(_LIBRARY) is None:
        raise QuantizationError(
            f"quantization.quantizer={config.quantizer} needs neural-compressor: {pip_install('quantization')} "
            "(or take quantization=w4_rtn, which needs nothing)"
        )


class _Reached(Exception):  # noqa: N818  # not an error: it ends a forward pass
    """The first layer has been given its input."""


class _Readers(nn.Module):
    """The consumers of a site; not a module list, in which the library would look for blocks."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        for i, weight in enumerate(weights):
            self.add_module(f"reader{i}", _linear(weight))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, n] -> [B, T, all outputs]."""
        return torch.cat([linear(x) for linear in self.children()], -1)


class _Surrogate(nn.Module):
    """One block, in the list of blocks where the library looks for it."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([_Readers(weights)])

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, n]."""
        y: Tensor = self.blocks[0](x)
        return y


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach().float().clone(), requires_grad=False)
    return linear


@torch.no_grad()
def quantise_layers(
    model: PreTrainedModel, handle: SparsityHandle, config: QuantizationConfig, tokens: Tensor
) -> dict[nn.Linear, Tensor]:
    """Round the projections of `model` in place, through `handle`; tokens: [N, T]. Returns the weights before.

    Raises QuantizationError where the library is missing or its weights are not finite.
    """
    check_installed(config)
    view, before, from_cache = ModelView(model), dict[nn.Linear, Tensor](), 0
    with handle.level_zero():
        inputs = _first_inputs(view, tokens)
        for layer in tqdm(view.layers, desc=config.quantizer, unit="layer", leave=False):
            seen = _seen(layer, inputs)
            identity = _identity(layer, seen, config, tokens)
            tensors, kept = tensor_store.cached("quantised", identity, partial(_rounded_layer, layer, seen, config))
            seen.clear()  # before the next layer's are made
            before |= _put(layer, tensors, handle, config)
            from_cache += kept
            inputs = [((_only(layer.module(*args, **more)), *args[1:]), more) for args, more in inputs]
    log.info("%s: %d of %d layers from the cache", config.quantizer, from_cache, len(view.layers))
    return before


def _identity(
    layer: LayerView, seen: dict[str, list[Tensor]], config: QuantizationConfig, tokens: Tensor
) -> dict[str, Any]:
    """What decides a rounded layer: its weights, and what they are given, by the tokens and all that the first
    sequence makes its sites see."""
    settings = config.model_dump(mode="json", include={"weights", "quantizer", "group_axis", "attention_sink_weight"})
    if config.group_axis == "in":
        settings["library"] = library_version()
    weights = [linear.weight for site in SITES for linear in layer.consumers(site)]
    return {
        "settings": settings,
        "version": _VERSION,
        "tokens": _sha256([tokens]),
        "weights": _sha256(weights),
        "seen": _sha256([seen[site][0] for site in SITES]),
    }


@cache
def library_version() -> str:
    """Name and version of the quantiser's library, as it is installed."""
    names = packages_distributions().get(_LIBRARY, ())
    return ", ".join(f"{name} {version(name)}" for name in names) or "of no distribution"


def _sha256(tensors: list[Tensor]) -> str:
    """Of shapes, dtypes and contents."""
    sha256 = hashlib.sha256()
    for tensor in tensors:
        sha256.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        content = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
        sha256.update(memoryview(content.numpy()))  # type: ignore[arg-type]  # numpy before 2.3 does not say so
    return sha256.hexdigest()


def _rounded_layer(layer: LayerView, seen: dict[str, list[Tensor]], config: QuantizationConfig) -> tensor_store.Tensors:
    """The quantised sites of a layer, as cached: qweight and scales from our GPTQ, new weights from the library.
    Removes the sites from `seen`, whose activations are large."""
    tensors: tensor_store.Tensors = {}
    for site in SITES:
        weights = [linear.weight for linear in layer.consumers(site)]
        given = [_counted(x, config.attention_sink_weight) for x in seen.pop(site)]
        if config.group_axis == "in":
            new = rounded(weights, given, config.quantizer)
            tensors |= {f"{site}.reader{i}": weight.detach() for i, weight in enumerate(new)}
        else:
            matrix = fed_back(torch.cat(weights).T, _moments(given), config.scheme)
            tensors |= {f"{site}.codes": matrix.qweight, f"{site}.scale": matrix.scale}
    return tensors


def _put(
    layer: LayerView, tensors: tensor_store.Tensors, handle: SparsityHandle, config: QuantizationConfig
) -> dict[nn.Linear, Tensor]:
    """Exchange the weights of a layer for the quantised ones; returns the weights before."""
    before = {}
    for site in SITES:
        consumers = layer.consumers(site)
        device, dtype = consumers[0].weight.device, consumers[0].weight.dtype
        if config.group_axis == "in":
            new = [tensors[f"{site}.reader{i}"].to(device) for i in range(len(consumers))]
        else:
            qweight, scale = (tensors[f"{site}.{part}"].to(device) for part in ("codes", "scale"))
            matrix = handle.quantised[layer.index, site] = Quantised(config.scheme, qweight, scale)
            new = matrix.consumers([len(linear.weight) for linear in consumers], dtype)
        for linear, weight in zip(consumers, new, strict=True):
            before[linear] = linear.weight
            handle.exchange(linear, "weight", weight)
    return before


def _counted(x: Tensor, first: float | None) -> Tensor:
    """x [1, T, n] with its first vector scaled so that its square counts `first` times in GPTQ's second moments."""
    if first is None:
        return x
    return torch.cat([x[:, :1] * first**0.5, x[:, 1:]], 1)


def _moments(inputs: list[Tensor]) -> Tensor:
    """Inputs [1, T, n] -> the sum of their squares and products, [n, n]."""
    return sum((x[0].T @ x[0] for x in inputs), torch.zeros((), device=inputs[0].device))


def _only(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _first_inputs(view: ModelView, tokens: Tensor) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What the first layer is called with, for every sequence."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def take(_module: nn.Module, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        hidden = args[0] if args else more["hidden_states"]
        calls.append(((hidden, *args[1:]), {key: value for key, value in more.items() if key != "hidden_states"}))
        raise _Reached

    hook = view.layers[0].module.register_forward_pre_hook(take, with_kwargs=True, prepend=True)
    try:
        for row in torch.split(tokens, 1):
            try:
                view.decoder(input_ids=row.to(view.embedding.weight.device), use_cache=False)
            except _Reached:
                continue
    finally:
        hook.remove()
    return calls


def _seen(layer: LayerView, inputs: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> dict[str, list[Tensor]]:
    """Site -> its activations, a tensor [1, T, width] per sequence."""
    seen: dict[str, list[Tensor]] = {site: [] for site in SITES}
    with ExitStack() as stack:
        for site, rows in seen.items():
            hook = layer.consumers(site)[0].register_forward_hook(_keeps(rows))
            stack.callback(hook.remove)
        for args, more in inputs:
            layer.module(*args, **more)
    return seen


def _keeps(rows: list[Tensor]) -> Any:
    def hook(_linear: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
        rows.append(args[0].detach().float())

    return hook


def rounded(weights: list[Tensor], inputs: list[Tensor], quantizer: str) -> list[Tensor]:
    """The weights [out, n] of one site's consumers, rounded for inputs [1, T, n], in their dtype, where they are."""
    from neural_compressor.torch.quantization import AWQConfig, GPTQConfig, convert, prepare

    logging.getLogger("neural_compressor").setLevel(logging.ERROR)  # it logs a dozen lines per site
    surrogate: nn.Module = _Surrogate(weights)
    if quantizer == "gptq":
        config = GPTQConfig(bits=4, use_sym=False, group_size=GROUP, block_size=_BLOCK, model_path=_HERE)
    else:
        config = AWQConfig(bits=4, use_sym=False, group_size=GROUP, use_auto_scale=True, use_mse_search=True)
    prepared = prepare(surrogate, config, example_inputs=inputs[0])
    for x in inputs:
        prepared(x)
    done = convert(prepared)
    consumers = (done.get_submodule(f"blocks.0.reader{i}") for i in range(len(weights)))
    rounded_weights = [_weight(linear).to(old) for linear, old in zip(consumers, weights, strict=True)]
    if not all(bool(torch.isfinite(weight).all()) for weight in rounded_weights):
        raise QuantizationError(f"{quantizer} gave weights that are not finite: calibrate on more tokens")
    return rounded_weights


def _weight(module: nn.Module) -> Tensor:
    """The dequantised weight of a linear that the library exchanged, AWQ's input scale folded in."""
    scale = getattr(module, "input_scale", None)
    inner = module.get_submodule("linear") if scale is not None else module
    weight: Tensor = inner.recover() if hasattr(inner, "recover") else inner.weight  # type: ignore[assignment,operator]
    return weight if scale is None else weight * scale
