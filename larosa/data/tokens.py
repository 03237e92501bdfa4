"""From documents to a fixed block of token ids, with a hash that names it.

Documents are joined and tokenised once, with the special tokens that the tokenizer puts around any text by
default: for Llama one BOS at the beginning, as in the code of GPTQ and LaRoSA. The block is cut from that
stream of tokens, so all of its rows but perhaps the first begin in mid-sentence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from larosa.config.run import CalibrationConfig, TextConfig
from larosa.data.texts import TextError


@dataclass(frozen=True, eq=False)
class TokenBlock:
    """Token ids of one text; two blocks with one `sha256` are equal."""

    ids: Tensor
    """[N, T] int64, on the CPU."""
    text: str
    """The text's name."""
    documents: int
    """Documents of the whole text, not only those that the block holds."""
    tokens_available: int
    """Tokens of the whole text."""
    sha256: str
    """Of the shape and the ids."""

    @classmethod
    def of(cls, ids: Tensor, text: str, documents: int, tokens_available: int) -> TokenBlock:
        """The block of ids [N, T] int64 on the CPU."""
        ids = ids.contiguous()
        digest = hashlib.sha256(str(tuple(ids.shape)).encode())
        digest.update(ids.numpy().astype("<i8").tobytes())
        return cls(ids, text, documents, tokens_available, digest.hexdigest())


def calibration_block(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, config: CalibrationConfig, seed: int
) -> TokenBlock:
    """`config.sequences` windows of `config.length` tokens, [N, T].

    The stream is cut into disjoint windows from its beginning. `first` takes the first N; `random` draws N
    of them without replacement and keeps the drawn order, so that the first few rows are a random sample
    too. Raises TextError if the text has fewer windows.
    """
    stream = _tokenise(documents, tokenizer, config.text.join)
    windows = _cut(stream, config.length)
    if len(windows) < config.sequences:
        raise TextError(
            f"text {config.text.name} has {len(stream)} tokens, {len(windows)} windows of {config.length}; "
            f"calibration needs {config.sequences}. Lower calibration.sequences or calibration.length, raise "
            "calibration.text.max_documents if it is set, or choose a longer text"
        )
    if config.sampling == "random":
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
        windows = windows[order]
    return _block(windows[: config.sequences], stream, documents, config.text)


def evaluation_block(
    documents: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    text: TextConfig,
    length: int,
    max_tokens: int | None,
    samples: int | None = None,
    seed: int = 0,
) -> TokenBlock:
    """Disjoint blocks of `length` tokens from the text's beginning, [N, T]; a shorter remainder is dropped.

    At most `max_tokens // length` blocks; None takes all. Of these `samples`, drawn by `seed` without replacement, in
    the text's order; None takes all. Raises TextError if that is not one block, or if there are fewer than `samples`.
    """
    stream = _tokenise(documents, tokenizer, text.join)
    windows = _cut(stream, length)
    if max_tokens is not None:
        windows = windows[: max_tokens // length]
    if not len(windows):
        raise TextError(
            f"text {text.name} has {len(stream)} tokens, of which max_tokens={max_tokens} may be read; one "
            f"block needs {length}. Lower evaluation.perplexity.length, raise "
            "evaluation.perplexity.max_tokens, or choose a longer text"
        )
    if samples is not None:
        if len(windows) < samples:
            raise TextError(
                f"text {text.name} has {len(windows)} blocks of {length} tokens within max_tokens={max_tokens}, "
                f"evaluation.perplexity.samples={samples} needs more: lower it or evaluation.perplexity.length"
            )
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
        windows = windows[order[:samples].sort().values]
    return _block(windows, stream, documents, text)


def check_ids(block: TokenBlock, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Raise TextError if the block holds a token that a model of `vocabulary` embeddings does not have."""
    largest = int(block.ids.max())
    if largest >= vocabulary:
        raise TextError(
            f"text {block.text} holds the token {largest} ({tokenizer.convert_ids_to_tokens(largest)!r}), and the "
            f"model has {vocabulary} embeddings: take the tokenizer that belongs to the model, or a text without it"
        )


def _tokenise(documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, join: str) -> Tensor:
    # verbose=False: that the stream is longer than the model's context is no news, it is cut next.
    ids = tokenizer(join.join(documents), verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64)


def _cut(stream: Tensor, length: int) -> Tensor:
    """[tokens] -> [tokens // length, length]."""
    count = len(stream) // length
    return stream[: count * length].view(count, length)


def _block(ids: Tensor, stream: Tensor, documents: Sequence[str], text: TextConfig) -> TokenBlock:
    return TokenBlock.of(ids, text.name, len(documents), len(stream))
