"""The best dense step that we know: cuBLAS under the same graph, attention and fused norms.

Three ways to the same products, of which a comparison takes the fastest: `linear` (F.linear on [out, in] weights),
`addmm` (the same with the residual added inside the product) and `input_major` (the decoder's own copy).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from larosa.decode.decoder import Decoder
from larosa.decode.errors import DecodeError
from larosa.decode.matrix import dense
from larosa.decode.selectors import dense_selectors
from larosa.decode.weights import DecodeWeights

LAYOUTS = ("linear", "addmm", "input_major")
Transposed = list[dict[str, Tensor]]


def transposed(weights: DecodeWeights) -> Transposed:
    """Layer -> site -> the weights as [out, in], a second copy."""
    return [
        {site: dense(matrix, weights.dtype).T.contiguous() for site, matrix in layer.matrices.items()}
        for layer in weights.layers
    ]


class DenseDecoder(Decoder):
    """Nothing is selected and torch multiplies. `output_major`: :func:`transposed`, for linear and addmm."""

    def __init__(
        self, weights: DecodeWeights, layout: str, max_len: int, output_major: Transposed | None = None, **how: Any
    ) -> None:
        if layout not in LAYOUTS or (layout != "input_major" and output_major is None):
            raise DecodeError(f"layout={layout}: expected one of {', '.join(LAYOUTS)}, all but the last with a copy")
        self.layout, self._output_major = layout, output_major
        super().__init__(weights, dense_selectors(weights.shape), max_len, **how)

    @property
    def fused(self) -> bool:
        """The products are torch's own."""
        return False

    def product(self, layer: int, site: str, x: Tensor, keep: Tensor, residual: Tensor | None) -> Tensor:
        """x [B, width] times what reads the site, plus bias and residual; `keep` is not looked at."""
        layer_weights = self.weights.layers[layer]
        bias = layer_weights.biases.get(site)
        if self._output_major is None:
            y = x @ dense(layer_weights.matrices[site], x.dtype)
            y = y if bias is None else y + bias
        elif self.layout == "addmm" and residual is not None and bias is None:
            return residual.addmm_(x, self._output_major[layer][site].T)  # nobody reads the old stream again
        else:
            y = functional.linear(x, self._output_major[layer][site], bias)
        return y if residual is None else y + residual
