"""Calibration tokens of one text or of a mixture, whose parts share the sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from larosa.config.run import CalibrationConfig
from larosa.config.texts import parts_of, sequences_of
from larosa.data.tokens import TokenBlock, calibration_block


def calibration_tokens(
    parts: Mapping[str, Sequence[str]], tokenizer: PreTrainedTokenizerBase, config: CalibrationConfig, seed: int
) -> TokenBlock:
    """[N, T] windows of the parts' documents (:func:`larosa.data.texts.load_parts`), each part by its share.

    A part's windows are those of :func:`larosa.data.tokens.calibration_block`. They are spread evenly over the rows, so
    that the first rows, on which thresholds are measured, are a mixture too. Raises TextError as it does.
    """
    counts = sequences_of(config.text, config.sequences)
    blocks = {}
    for name, text in parts_of(config.text).items():
        part_config = config.model_copy(update={"text": text, "sequences": counts[name]})
        blocks[name] = calibration_block(parts[name], tokenizer, part_config, seed)
    if len(blocks) == 1:
        return next(iter(blocks.values()))
    places = [((row + 0.5) / counts[name], name, row) for name in blocks for row in range(counts[name])]
    ids = torch.stack([blocks[name].ids[row] for _, name, row in sorted(places)])
    documents = sum(block.documents for block in blocks.values())
    return TokenBlock.of(ids, config.text.name, documents, sum(block.tokens_available for block in blocks.values()))
