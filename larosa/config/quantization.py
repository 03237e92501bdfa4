"""The schema of `quantization=`: which weights stand on a grid, and who puts them there.

A part of :mod:`larosa.config.run`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from larosa.config.base import Strict


class QuantizationConfig(Strict):
    """Weights of the model that is evaluated, rounded after the method has turned them. See larosa.quantization."""

    weights: Literal["none", "w8", "w4"]
    """Of the seven projections."""
    quantizer: Literal["rtn", "gptq", "awq"]
    """Round to nearest, or a calibrated quantiser."""
    group_axis: Literal["out", "in"]
    """w4: whether 64 outputs of one input channel share a scale, or 64 inputs of one output channel. GPTQ along the
    output is larosa.quantization.gptq, along the input a library's."""
    sequences: PositiveInt | None
    """Calibration sequences that a calibrated quantiser reads, from the first on; None: all. Rounding reads none."""
    attention_sink_weight: PositiveFloat | None
    """GPTQ: how many tokens the first one of every calibration sequence counts as; None: one."""
    head: Literal["none", "w8"]
    adapters: Literal["none", "w8"]
    """Residual adapters of absorbed rotations."""

    @property
    def active(self) -> bool:
        """Whether anything is rounded."""
        return any(part != "none" for part in (self.weights, self.head, self.adapters))

    @property
    def scheme(self) -> str:
        """The grid, as larosa.models.formats names it."""
        return "w8" if self.weights == "w8" else f"w4_{self.group_axis}"

    @property
    def calibrated(self) -> bool:
        """Whether the quantiser reads calibration tokens."""
        return self.weights != "none" and self.quantizer != "rtn"

    @model_validator(mode="after")
    def _possible(self) -> QuantizationConfig:
        if self.weights == "none" and self.quantizer != "rtn":
            raise ValueError(
                f"quantization.quantizer={self.quantizer} belongs to weights=w8 or w4, not to weights=none"
            )
        if self.weights != "w4" and self.group_axis != "out":
            raise ValueError(f"quantization.group_axis=in belongs to weights=w4, not to weights={self.weights}")
        if self.quantizer == "awq" and self.group_axis != "in":
            raise ValueError(
                "quantization.quantizer=awq has its groups along the input: set quantization.weights=w4 and "
                "quantization.group_axis=in (quantization=w4_awq)"
            )
        if self.attention_sink_weight is not None and self.quantizer != "gptq":
            raise ValueError("quantization.attention_sink_weight is of quantization.quantizer=gptq")
        return self
