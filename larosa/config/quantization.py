"""The schema of `quantization=`: which weights are quantised, and by which quantiser.

A part of :mod:`larosa.config.run`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveFloat, PositiveInt, model_validator

from larosa.config.base import Strict


class QuantizationConfig(Strict):
    """Quantised weights of the evaluated model, rounded after the method has rotated them. See larosa.quantization."""

    weights: Literal["none", "w8", "w4"]
    """Format of the seven projections. `w8`: one scale per output channel. `w4`: one scale per group of 64."""
    quantizer: Literal["rtn", "gptq", "awq"]
    """`rtn`: round to nearest. `gptq`, `awq`: calibrated; w4 in groups along the input is neural-compressor's."""
    group_axis: Literal["out", "in"]
    """w4: which weights share a scale. `out`: 64 outputs of one input channel (the decoder's format). `in`: 64 inputs
    of one output channel."""
    sequences: PositiveInt | None
    """Calibration sequences that GPTQ and AWQ read, from the first on; null: all."""
    attention_sink_weight: PositiveFloat | None
    """GPTQ: how many tokens the first token of a calibration sequence counts as; null: one."""
    head: Literal["none", "w8"]
    """Format of lm_head."""
    adapters: Literal["none", "w8"]
    """Format of the residual adapters of absorbed rotations."""

    @property
    def active(self) -> bool:
        """Whether any weights are quantised."""
        return any(part != "none" for part in (self.weights, self.head, self.adapters))

    @property
    def scheme(self) -> str:
        """The format, as larosa.models.formats names it."""
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
                "quantization.quantizer=awq groups along the input: set quantization.weights=w4 and "
                "quantization.group_axis=in (quantization=w4_awq)"
            )
        if self.attention_sink_weight is not None and self.quantizer != "gptq":
            raise ValueError(
                "quantization.attention_sink_weight belongs to quantization.quantizer=gptq; set it to null"
            )
        return self
