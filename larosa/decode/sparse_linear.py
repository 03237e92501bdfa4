"""The decoder's kernels inside the transformers model: `model.generate()` reads only the weights that a token needs.

    with apply(model, plan) as handle, sparse_linears(model):
        model.generate(**inputs, cache_implementation="static")

Every projection is replaced by a :class:`SparseLinear`. The sites have zeroed what they drop by then, so a projection
keeps what is not zero; few rows (decoding) go through `sparse_gemv`, many (a prompt) through one dense product.
Selection is still the sites' torch code: this shows the kernels inside the model, `decoder.py` is the fast way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from larosa.decode import ops
from larosa.decode.errors import DecodeError
from larosa.models.architecture import SITES, ModelView

FEW_ROWS = 8
"""Rows from which one dense product over all weights is cheaper than a sparse one each."""


class SparseLinear(nn.Module):
    """y = x W^T + b with W stored input-major, [in, out]; rows of W behind zeros of x are not read.

    backend: `auto`, `triton` or `reference`, as in the decoder. x: [..., in] in the weight's dtype.
    """

    weight: Tensor
    bias: Tensor | None
    keep: Tensor

    def __init__(self, linear: nn.Linear, backend: str = "auto") -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.backend = ops.resolve(backend, linear.weight.device, linear.weight.dtype)
        self.register_buffer("weight", linear.weight.detach().T.contiguous())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        not_zero = torch.tensor([[0, -1]], dtype=torch.int32, device=linear.weight.device)
        self.register_buffer("keep", not_zero, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., in] -> [..., out]."""
        rows = x.reshape(-1, self.in_features)
        if len(rows) > FEW_ROWS:
            dense = x @ self.weight
            return dense if self.bias is None else dense + self.bias
        keep = self.keep.expand(len(rows), 2).contiguous()
        y: Tensor = ops.sparse_gemv(rows.contiguous(), keep, self.weight, bias=self.bias, backend=self.backend)
        return y.reshape(*x.shape[:-1], self.out_features)


@contextmanager
def sparse_linears(model: PreTrainedModel, backend: str = "auto") -> Iterator[list[SparseLinear]]:
    """Within: the projections of `model` are SparseLinears; afterwards they are the very modules they were.

    Enter it after `apply`, whose hooks on o and down move along, and leave it before `remove()`.
    """
    view, replaced = ModelView(model), list[tuple[nn.Module, str, nn.Linear]]()
    made: list[SparseLinear] = []
    try:
        for layer in view.layers:
            for path in (path for site in SITES for path in view.architecture.consumers[site]):
                parent, _, name = path.rpartition(".")
                owner = layer.module.get_submodule(parent)
                linear = getattr(owner, name)
                if linear._forward_hooks:  # r_sparse: its pairs read what sparse_gemv does not see
                    raise DecodeError(f"layer {layer.index}: {path} has forward hooks, which a SparseLinear would lose")
                sparse = SparseLinear(linear, backend)
                sparse._forward_pre_hooks = linear._forward_pre_hooks  # the sites' own, removable as before
                sparse._forward_pre_hooks_with_kwargs = linear._forward_pre_hooks_with_kwargs
                replaced.append((owner, name, linear))
                setattr(owner, name, sparse)
                made.append(sparse)
        yield made
    finally:
        for owner, name, linear in replaced:
            setattr(owner, name, linear)
