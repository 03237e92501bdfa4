"""Names of keys and choices before the settings took the field's terms; each ends in one error that says the new
one."""

from __future__ import annotations

KEYS = {
    "tokens": "token_policy",
    "schedule.count": "schedule.metric",
    "method.transform_storage": "method.transform_dtype",
    "method.rule": "method.selector",
    "method.score": "method.importance",
    "method.top_k": "method.ties and method.rounding",
    "method.rank_share": "method.low_rank_ratio",
    "method.rank_search": "method.low_rank_ratio_grid",
    "model.keep_weights": "model.dense_weights_device",
    "quantization.groups": "quantization.group_axis",
    "quantization.first_token_weight": "quantization.attention_sink_weight",
    "evaluation.speed.gate_tokens": "evaluation.speed.parity_tokens",
    "allocation.rule": "allocation.algorithm",
    "allocation.around": "allocation.other_sites",
    "inspect": "diagnostics",
}
"""Key, or section whose keys moved with it -> key or section now."""
CHOICES = {
    ("method", "larosa/blocks"): "larosa/block_diagonal",
    ("quantization", "w4_gptq_output"): "w4_gptq_out",
    ("quantization", "w4_rtn_input"): "w4_rtn_in",
}
VALUES = {
    ("method.form", "explicit"): "online",
    ("method.granularity", "block"): "sublayer",
    ("schedule.metric", "bytes"): "weight_bytes",
    ("quantization.group_axis", "output"): "out",
    ("quantization.group_axis", "input"): "in",
}


def renamed(key: str) -> str | None:
    """What a former key is called now, in words; None for any other."""
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        now = KEYS.get(".".join(parts[:end]))
        if now is not None:
            return f"{key} is now {'.'.join([now, *parts[end:]]) if ' ' not in now else now}"
    return None


def renamed_choice(group: str, name: str) -> str | None:
    """What a former choice of a group is called now, in words; None for any other."""
    now = CHOICES.get((group, name))
    return None if now is None else f"{group}={name} is now {group}={now}"


def renamed_value(key: str, value: object) -> str | None:
    """What a former value of a setting is called now, in words; None for any other."""
    now = VALUES.get((key, str(value)))
    return None if now is None else f"{value} is now called {now}"
