"""The quantiser `larosa` of an export's config.json, registered in transformers once larosa is imported.

It says how an export is loaded to whoever loads it by a class of one architecture, `LlamaForCausalLM` or the like.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

NAME = "larosa"


class LarosaQuantizationConfig(QuantizationConfigMixin):
    """`quantization_config` of an export."""

    def __init__(self, **_: Any) -> None:
        super().__init__(quant_method=NAME)  # type: ignore[arg-type]  # its names are those of transformers' own


class LarosaQuantizer(HfQuantizer):
    """Refuses before weights are looked for."""

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Raises ExportError."""
        from larosa.exports.errors import ExportError

        raise ExportError(
            "this folder is an export of larosa, which larosa.load(FOLDER) or AutoModelForCausalLM.from_pretrained("
            "FOLDER) loads; it gives a model of transformers' own class"
        )

    def is_serializable(self) -> bool:
        """larosa.export saves it."""
        return False

    @property
    def is_trainable(self) -> bool:
        """A sparse model is for inference."""
        return False


def register(module: ModuleType) -> None:
    """Register in transformers.quantizers.auto, which has just been imported."""
    module.AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(NAME, LarosaQuantizationConfig)
    module.AUTO_QUANTIZER_MAPPING.setdefault(NAME, LarosaQuantizer)
