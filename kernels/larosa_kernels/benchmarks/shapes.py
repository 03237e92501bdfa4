"""The matrix shapes of the models that the benchmarks time, batch 1."""

from __future__ import annotations

LAYERS = 8
PROJECTIONS = {
    ("LLaMA2-7B", "qkv"): (4096, 12288),
    ("LLaMA2-7B", "o"): (4096, 4096),
    ("LLaMA2-7B", "gate+up"): (4096, 22016),
    ("LLaMA2-7B", "down"): (11008, 4096),
    ("LLaMA3-8B", "qkv"): (4096, 6144),
    ("LLaMA3-8B", "o"): (4096, 4096),
    ("LLaMA3-8B", "gate+up"): (4096, 28672),
    ("LLaMA3-8B", "down"): (14336, 4096),
}
HEADS = {"LLaMA2-7B": (32, 1), "LLaMA3-8B": (8, 4)}
WIDTHS = {"LLaMA2-7B": (4096, 11008), "LLaMA3-8B": (4096, 14336)}
CONTEXT, HEAD_WIDTH, EPS = 1024, 128, 1e-5
