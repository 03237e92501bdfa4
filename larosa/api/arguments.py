"""The checks that `larosa.sparsify` makes of a caller's model and tokens, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from larosa.data.tokens import TokenBlock
from larosa.errors import ArgumentError
from larosa.models.architecture import ArchitectureError, ModelView, architecture_of
from larosa.models.inputs import check_ids, described
from larosa.sparsity.handle import check_dense

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def checked_model(given: object) -> PreTrainedModel:
    """The model, if it can be made sparse as it is.

    Raises ArgumentError for what is no causal model of transformers with plain floating weights in memory and no
    dropout at work, ArchitectureError for an unknown architecture, PlanError where the model is sparse already.
    """
    if not isinstance(given, PreTrainedModel):
        raise ArgumentError(
            "model must be a causal language model of transformers, from AutoModelForCausalLM.from_pretrained; got "
            f"{type(given).__name__}{_unwrapping(given)}"
        )
    check_dense(given)
    _check_parts(given)
    _check_weights(given)
    if any(module.training and _dropout(module) > 0 for module in given.modules()):
        raise ArgumentError("the model is in training mode, and its dropout would act: call model.eval() first")
    return given


def _dropout(module: nn.Module) -> float:
    rate = module.p if isinstance(module, nn.Dropout) else getattr(module, "attention_dropout", 0.0)
    return float(rate or 0.0)


def _unwrapping(given: object) -> str:
    if hasattr(given, "merge_and_unload"):
        return ": merge its adapters first, model.merge_and_unload()"
    if hasattr(given, "_orig_mod"):
        return ": call sparsify before torch.compile"
    if isinstance(getattr(given, "module", None), PreTrainedModel):
        return ": give the model inside it, model.module"
    return ""


def _check_parts(model: PreTrainedModel) -> None:
    paths = architecture_of(model.config)
    for path in (paths.decoder, paths.layers, paths.embedding, paths.final_norm, paths.head):
        try:
            model.get_submodule(path)
        except AttributeError:
            raise ArgumentError(
                f"model is a {type(model).__name__} without {path}: load it with AutoModelForCausalLM.from_pretrained"
            ) from None


def _check_weights(model: PreTrainedModel) -> None:
    quantised = "the weights of the model are quantised, and larosa transforms floating ones: load it without "
    if getattr(model, "is_quantized", False) or getattr(model.config, "quantization_config", None) is not None:
        raise ArgumentError(f"{quantised}quantization_config, or call model.dequantize() first")
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ArgumentError(
                f"{name} is on the meta device, without values (a model built without weights, or offloaded by "
                "device_map): load it whole, e.g. device_map=None or 'cuda'"
            )
    view = ModelView(model)
    linears = [linear for layer, site in view.sites() for linear in layer.consumers(site)]
    places = {id(module): name for name, module in model.named_modules()}
    for module in (*linears, view.embedding, view.head):
        weight, name = module.weight, places[id(module)]
        if type(weight) is not nn.Parameter:
            raise ArchitectureError(
                f"{name}.weight is a {type(weight).__name__}, expected a plain torch.nn.Parameter: load the model "
                "without quantisation, parametrisations or tensor parallelism"
            )
        if weight.dtype not in _DTYPES:
            raise ArgumentError(f"{quantised}quantisation: {name}.weight is {weight.dtype}")


def token_block(given: object, model: PreTrainedModel) -> TokenBlock:
    """Calibration tokens as [N, T] int64 on the CPU: a tensor or array of integers, lists of equal length, or what a
    tokenizer returns for texts of equal length.

    Raises ArgumentError for another shape or dtype and for padding, InputError for ids outside the vocabulary and for
    sequences longer than the model's positions.
    """
    ids = _integers(given)
    if ids.dim() != 2 or ids.numel() == 0 or ids.shape[1] < 2:
        hint = ": tokens[None] makes a batch of one sequence" if ids.dim() == 1 else ""
        raise ArgumentError(
            f"tokens must be [N, T] int64, N sequences of T >= 2 token ids, got {list(ids.shape)} {ids.dtype}{hint}"
        )
    check_ids(ids, model.config)
    return TokenBlock.of(ids, "given", len(ids), ids.numel())


def _integers(given: object) -> Tensor:
    if isinstance(given, Mapping):
        if "input_ids" not in given:
            raise ArgumentError(f"tokens has no input_ids, only {', '.join(map(str, given)) or 'nothing'}")
        mask, given = given.get("attention_mask"), given["input_ids"]
        if mask is not None and not bool(_tensor(mask).bool().all()):
            raise ArgumentError("tokens are padded, and padding would be calibrated on: give sequences of equal length")
    ids = _tensor(given)
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex() or ids.is_meta:
        raise ArgumentError(f"tokens must be [N, T] int64, got {described(ids)} on {ids.device}")
    return ids.detach().cpu().long()


def _tensor(given: object) -> Tensor:
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(
            "tokens must be [N, T] int64: a tensor of token ids (not text: tokenizer(text).input_ids), or lists of "
            f"them of equal length; got {described(given)} ({error})"
        ) from None


@contextmanager
def frozen(model: PreTrainedModel) -> Iterator[None]:
    """Within: no weight requires a gradient, and gradients can be computed in any mode of the caller."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        with torch.inference_mode(False):
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
