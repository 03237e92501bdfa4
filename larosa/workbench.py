"""One bench for many runs of a process: a sweep on one model reads its texts and loads it once.

Runs whose model, calibration, texts, block length and seed are equal share the bench, as long as the files behind them
are unchanged; another one takes its place, and the old one's memory is given back first.
"""

from __future__ import annotations

import gc
from typing import Any

import torch

from larosa.config import RunConfig
from larosa.disk import digest
from larosa.pipeline import Bench, open_bench, read_documents
from larosa.results import text_identity
from larosa.weights import fingerprint


def bench_settings(config: RunConfig) -> dict[str, Any]:
    """What decides a bench, JSON-able."""
    kept = {"model", "calibration", "texts", "seed"}
    texts = [text_identity(text) for text in (config.calibration.text, *config.texts.values())]
    found = {"size": config.evaluation.perplexity.model_dump(), "weights": fingerprint(config.model), "behind": texts}
    return config.model_dump(mode="json", include=kept) | found


class Workbench:
    """The last bench that was opened."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._bench: Bench | None = None

    def open(self, config: RunConfig) -> Bench:
        """The bench of `config`. Raises LarosaError where texts or weights cannot be had."""
        tasks = config.evaluation.zero_shot.model_dump(mode="json")  # checked against the bench's tokenizer
        key = digest(bench_settings(config) | {"tasks": tasks})
        if self._bench is None or self._key != key:
            self.clear()
            self._bench, self._key = open_bench(config, read_documents(config)), key
        return self._bench

    def clear(self) -> None:
        """Give the bench's memory back, as after a failure: whatever it left behind does not reach another cell."""
        self._key = self._bench = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
