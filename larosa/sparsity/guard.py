"""Operations that a sparse model refuses.

The weights of a sparse model are transformed or need hooks, so a copy of them is not a model: saving, pickling and
copying are refused. So is everything that replaces, resizes or converts weights without the handle. The
guards are attributes and hooks of the instances, on the model and on every module in it; :meth:`Guards.remove` leaves
none. Tensors that are read off the parameters themselves cannot be guarded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from larosa.errors import LarosaError

SAVING = ("save_pretrained", "push_to_hub")
CHANGING = (
    "resize_token_embeddings",
    "set_input_embeddings",
    "set_output_embeddings",
    "set_decoder",
    "init_weights",
    "dequantize",
    "add_adapter",
    "load_adapter",
)
_MISSING = object()


class SparseModelError(LarosaError):
    """The model is sparse, and this operation would give a broken model."""


class Guards:
    """The guards of one model. `remedy` says how to get the dense model back, in the imperative."""

    def __init__(self, model: PreTrainedModel, remedy: Callable[[], str]) -> None:
        self._model, self._remedy = model, remedy
        self._replaced: list[tuple[nn.Module, str, Any]] = []
        self._hooks: list[RemovableHandle] = []

    def install(self) -> None:
        """Guard the model and every module in it. Raises nothing; undone by `remove()`."""
        for module in self._model.modules():
            untyped: Any = module
            self._hooks.append(untyped.register_state_dict_pre_hook(self._refuse_state_dict))
            self._hooks.append(untyped.register_load_state_dict_pre_hook(self._refuse_load))
            self.replace(module, "__getstate__", self._refuser("pickling or copying", _NO_CHECKPOINT))
            self.replace(module, "to_empty", self._refuser("to_empty", _NO_CHANGE))
            self.replace(module, "_apply", self._conversion(module))
            if isinstance(module, PreTrainedModel):
                for name in SAVING:
                    self.replace(module, name, self._refuser(name, _NO_CHECKPOINT))
                for name in CHANGING:
                    self.replace(module, name, self._refuser(name, _NO_CHANGE))

    def replace(self, module: nn.Module, name: str, value: Any) -> None:
        """Give the instance an attribute of its own until `remove()`."""
        self._replaced.append((module, name, vars(module).get(name, _MISSING)))
        vars(module)[name] = value

    def remove(self) -> None:
        """Take all guards off. Safe to call twice."""
        for hook in self._hooks:
            hook.remove()
        for module, name, old in reversed(self._replaced):
            if old is _MISSING:
                vars(module).pop(name, None)
            else:
                vars(module)[name] = old
        self._hooks.clear()
        self._replaced.clear()

    def refuse(self, what: str, why: str) -> SparseModelError:
        """The error of `what`, with the remedy."""
        return SparseModelError(f"{what}: {why}; {self._remedy()}")

    def _refuser(self, what: str, why: str) -> Callable[..., Any]:
        def refused(*_args: Any, **_kwargs: Any) -> Any:
            raise self.refuse(what, why)

        return refused

    def _refuse_state_dict(self, *_: Any) -> None:
        raise self.refuse("state_dict", _NO_CHECKPOINT)

    def _refuse_load(self, *_: Any) -> None:
        raise self.refuse("load_state_dict", _NO_CHANGE)

    def _conversion(self, module: nn.Module) -> Callable[..., nn.Module]:
        """A `_apply`, which `to`, `half`, `cuda` and the like end in, for calls that change no dtype and no device."""
        original: Callable[..., nn.Module] = module._apply

        def converted(fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
            tensors = [*module.parameters(), *module.buffers()]
            for dtype, device in {(tensor.dtype, tensor.device) for tensor in tensors}:
                after = fn(torch.empty(0, dtype=dtype, device=device))
                if (after.dtype, after.device) != (dtype, device):
                    raise self.refuse(
                        f"to {after.dtype} on {after.device}",
                        f"the model was made sparse in {dtype} on {device}, and its rotations, adapters and kept "
                        "dense weights would stay there",
                    )
            return original(fn, recurse)

        return converted


_NO_CHECKPOINT = (
    "the model is sparse, and its weights without its hooks are not a model that could be loaded again; "
    "larosa.export(model, FOLDER), or `larosa export` of a run, saves it for larosa.load(FOLDER)"
)
_NO_CHANGE = "the model is sparse, and remove() could not restore weights that were changed meanwhile"
