"""GPTQ and AWQ, site by site of a model that a handle made sparse.

On the decoder's grids GPTQ is ours (feedback.py). With groups along the input both are from Intel's neural-compressor:

    pip install -e '.[quantization]'

The library gets what reads one site as a small model of its own, with the vectors that the site's readers are given: so
rotations, transforms and hooks stay where they are, and no module of the model is exchanged. Layers go in order; the
next one sees what the rounded layers before it give. Nothing is dropped meanwhile: the quantiser sees level 0.
A sequence's first token is an attention sink: nearly every later token reads its key and value, but in GPTQ's second
moments it is one of a thousand, and its error grows instead of theirs. `first_token_weight` lets it count as more.
Both give a scale and a zero point to 64 weights along the input. AWQ's scales multiply a linear's own input, unfolded
as the library has them; here they go into the weights again, since a norm or projection that took them would change
what Top-K ranks.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from larosa.architecture import SITES, LayerView, ModelView
from larosa.quantization.feedback import fed_back
from larosa.quantization.grid import GROUP, QuantizationError
from larosa.quantization_config import QuantizationConfig
from larosa.sparsity.handle import SparsityHandle

_HERE = "."
"""An existing folder: without one GPTQ asks the hub for a model's name, though it reads no file."""
_BLOCK = GROUP
"""Inputs that GPTQ rounds before it corrects all others at once. Scales are found from weights as the last block left
them: of several groups in a block all but the first would get those of weights that are not corrected yet."""


def check_installed(config: QuantizationConfig) -> None:
    """Raise QuantizationError where the library of a calibrated quantiser is missing."""
    if config.groups == "input" and find_spec("neural_compressor") is None:
        raise QuantizationError(
            f"quantization.quantizer={config.quantizer} needs neural-compressor: pip install -e '.[quantization]' (or "
            "take quantization=w4_rtn, which needs nothing)"
        )


class _Reached(Exception):  # noqa: N818  # no error: it ends a forward pass
    """The first layer has been given its input."""


class _Readers(nn.Module):
    """What reads a site; no module list, in which the library would look for blocks."""

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
        found: Tensor = self.blocks[0](x)
        return found


def _linear(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach().float().clone(), requires_grad=False)
    return linear


@torch.no_grad()
def quantise_layers(
    model: PreTrainedModel, handle: SparsityHandle, config: QuantizationConfig, tokens: Tensor
) -> dict[nn.Linear, Tensor]:
    """Round the projections of `model` in place, through `handle`; tokens: [N, T]. Returns the weights before.

    Raises QuantizationError where the library is missing or gives no number.
    """
    check_installed(config)
    view, before = ModelView(model), dict[nn.Linear, Tensor]()
    with handle.level_zero():
        inputs = _first_inputs(view, tokens)
        for layer in tqdm(view.layers, desc=config.quantizer, unit="layer", leave=False):
            seen = _seen(layer, inputs)
            for site in SITES:
                readers = layer.readers(site)
                weights = [reader.weight for reader in readers]
                given = [_counted(x, config.first_token_weight) for x in seen.pop(site)]
                if config.groups == "input":
                    new = rounded(weights, given, config.quantizer)
                else:
                    found = fed_back(torch.cat(weights).T, _moments(given), config.scheme)
                    handle.quantised[layer.index, site] = found
                    new = found.readers([len(own) for own in weights], weights[0].dtype)
                before |= zip(readers, weights, strict=True)
                for reader, weight in zip(readers, new, strict=True):
                    handle.exchange(reader, "weight", weight)
            inputs = [((_only(layer.module(*args, **more)), *args[1:]), more) for args, more in inputs]
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
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _first_inputs(view: ModelView, tokens: Tensor) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """What the first layer is called with, for every sequence."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def take(_module: nn.Module, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        hidden = args[0] if args else more["hidden_states"]
        found.append(((hidden, *args[1:]), {key: value for key, value in more.items() if key != "hidden_states"}))
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
    return found


def _seen(layer: LayerView, inputs: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> dict[str, list[Tensor]]:
    """Site -> what its readers are given, a tensor [1, T, width] for every sequence."""
    seen: dict[str, list[Tensor]] = {site: [] for site in SITES}
    with ExitStack() as stack:
        for site, rows in seen.items():
            hook = layer.readers(site)[0].register_forward_hook(_keeps(rows))
            stack.callback(hook.remove)
        for args, more in inputs:
            layer.module(*args, **more)
    return seen


def _keeps(rows: list[Tensor]) -> Any:
    def hook(_linear: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
        rows.append(args[0].detach().float())

    return hook


def rounded(weights: list[Tensor], inputs: list[Tensor], quantizer: str) -> list[Tensor]:
    """The weights [out, n] of one site's readers, rounded for inputs [1, T, n], in their dtype, where they are."""
    from neural_compressor.torch.quantization import AWQConfig, GPTQConfig, convert, prepare

    logging.getLogger("neural_compressor").setLevel(logging.ERROR)  # it says a dozen lines a site
    surrogate: nn.Module = _Surrogate(weights)
    if quantizer == "gptq":
        config = GPTQConfig(bits=4, use_sym=False, group_size=GROUP, block_size=_BLOCK, model_path=_HERE)
    else:
        config = AWQConfig(bits=4, use_sym=False, group_size=GROUP, use_auto_scale=True, use_mse_search=True)
    prepared = prepare(surrogate, config, example_inputs=inputs[0])
    for x in inputs:
        prepared(x)
    done = convert(prepared)
    readers = (done.get_submodule(f"blocks.0.reader{i}") for i in range(len(weights)))
    found = [_weight(reader).to(old) for reader, old in zip(readers, weights, strict=True)]
    if not all(bool(torch.isfinite(weight).all()) for weight in found):
        raise QuantizationError(f"{quantizer} gave weights that are not finite: calibrate on more tokens")
    return found


def _weight(module: nn.Module) -> Tensor:
    """The dequantised weight of a linear that the library exchanged, AWQ's input scale folded in."""
    scale = getattr(module, "input_scale", None)
    inner = module.get_submodule("linear") if scale is not None else module
    weight: Tensor = inner.recover() if hasattr(inner, "recover") else inner.weight  # type: ignore[assignment,operator]
    return weight if scale is None else weight * scale
