"""A GGUF file to a folder of safetensors in transformers' layout, with a tokenizer that is the published one.

Weights are dequantised by transformers. The tokenizer is rebuilt from the vocabulary and merges in the file with the
published pre-tokenizer, because GGUF only names that ("smollm", "qwen2") and each release of transformers guesses
another one: for SmolLM2, 5.17 also takes the wrong end token, and 5.23 does not split at digits, so that "\\n\\n1" is
three tokens and not two.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel, PreTrainedTokenizerFast

from larosa.data.assets import cache_folder, make_once
from larosa.data.contents import content_hash
from larosa.models.gguf_config import ROPE_FREQUENCIES, metadata, read_config
from larosa.models.gguf_config import GgufError as GgufError

log = logging.getLogger(__name__)

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenizer:
    """What the published tokenizers of a family do before BPE; GGUF's `tokenizer.ggml.pre` is its name."""

    splits: Callable[[], list[Any]]
    nfc: bool = False
    ignore_merges: bool = False
    """Whether a piece that is a token is taken whole, whatever the merges would make of it."""
    has_bos: bool = True
    adds_bos: bool = False
    """Whether texts begin with it, where the file does not say."""


def _split(numbers: str) -> list[Any]:
    """Words, numbers, punctuation and white space by the regular expression that Llama 3 and Qwen2 share."""
    pattern = Regex(_WORDS + numbers + _REST)
    return [
        pre_tokenizers.Split(pattern, "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


def _split_smollm() -> list[Any]:
    return [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]


PRE_TOKENIZERS = {
    "llama-bpe": PreTokenizer(lambda: _split(r"\p{N}{1,3}"), ignore_merges=True, adds_bos=True),
    "qwen2": PreTokenizer(lambda: _split(r"\p{N}"), nfc=True, has_bos=False),
    "smollm": PreTokenizer(_split_smollm),
}
"""From tokenizer.json of Llama 3, Qwen2.5 and SmolLM2 on the hub."""


def sha256(gguf: Path) -> str:
    """Of the file's bytes. Raises GgufError where it cannot be read."""
    try:
        return content_hash(gguf)
    except OSError as error:
        raise GgufError(f"{gguf} cannot be read: {error.strerror}") from error


def converted_folder(gguf: Path, dtype: str) -> Path:
    """The folder in the cache that :func:`convert` made of a GGUF file of one's own, once per content and precision.

    dtype: the one that weights are going to be loaded in; float32 stands for float64. Raises GgufError, AssetError.
    """
    stored = "float32" if dtype == "float64" else dtype
    target = cache_folder() / "models" / f"gguf-{sha256(gguf)[:16]}-{stored}"
    return make_once(target, lambda scratch: convert(gguf, scratch, getattr(torch, stored)))


def convert(gguf: Path, target: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write the model of `gguf` to the folder `target`: dequantised weights in `dtype`, configuration, tokenizer.

    float32 keeps what the file says: a dequantised weight is a float16 scale times integers of up to 14 bits, more than
    the 8 or 11 bits of bfloat16 or float16. Memory: about twice the weights in `dtype`. Raises GgufError, before
    weights are read where the model or its tokenizer is not known, and OSError where `target` cannot be written.
    """
    tokenizer, config = read_tokenizer(gguf), read_config(gguf)
    log.info("converting %s to safetensors (once)", gguf.name)
    try:
        auto: Any = AutoModelForCausalLM
        model, loading = auto.from_pretrained(
            gguf.parent,
            config=config,
            gguf_file=gguf.name,
            output_loading_info=True,
            quantization_config=GgufConfig(dequantize=True),
            dtype=dtype,
        )
    except (ValueError, KeyError, IndexError, NotImplementedError) as error:  # transformers has no error for it
        raise GgufError(f"{gguf.name} cannot be converted: {error}") from error
    _require_whole(gguf, model, loading)
    try:
        model.save_pretrained(target)
    except SafetensorError as error:
        raise OSError(str(error)) from error  # a full disk, as safetensors says it
    tokenizer.save_pretrained(target)


def _require_whole(gguf: Path, model: PreTrainedModel, loading: dict[str, Any]) -> None:
    """Raise GgufError where transformers filled parameters with random numbers or left tensors of the file out."""
    tensors = metadata(gguf)[1].keys() - {ROPE_FREQUENCIES}
    wrong = sorted({*loading["missing_keys"], *map(str, loading["mismatched_keys"])})
    count = len(list(model.parameters()))
    if wrong or len(tensors) != count:
        raise GgufError(
            f"{gguf.name} holds {len(tensors)} tensors, transformers' {model.config.model_type} has {count} parameters"
            f"{', of which ' + wrong[0] + ' is not in the file' if wrong else ''}: take the model's safetensors"
        )


def read_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer of a GGUF file, with its special tokens and chat template. Raises GgufError."""
    fields = _fields(gguf)
    kind, name = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or name not in PRE_TOKENIZERS:
        raise GgufError(
            f"{gguf.name}: its tokenizer is not known (tokenizer.ggml.model {kind}, tokenizer.ggml.pre {name}); "
            f"expected gpt2 with one of {', '.join(PRE_TOKENIZERS)}. Take the model's folder with tokenizer.json"
        )
    published = PRE_TOKENIZERS[name]
    tokens: list[str] = fields["tokenizer.ggml.tokens"]

    def named(role: str) -> str | None:
        return tokens[index] if (index := fields.get(f"tokenizer.ggml.{role}_token_id")) is not None else None

    build: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = build(
        tokenizer_object=_backend(fields, published),
        bos_token=named("bos") if published.has_bos else None,
        eos_token=named("eos"),
        unk_token=named("unknown"),
        pad_token=named("padding"),
        chat_template=fields.get("tokenizer.chat_template"),
    )
    return tokenizer


def _fields(gguf: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in metadata(gguf)[0].items()}


def _backend(fields: dict[str, Any], published: PreTokenizer) -> Tokenizer:
    from gguf import TokenType

    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    kinds = fields["tokenizer.ggml.token_type"]
    vocabulary = {  # rows of the embedding beyond the tokenizer's ids have made-up names
        token: index for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != TokenType.UNUSED
    }
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=published.ignore_merges))
    if published.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(published.splits())
    backend.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, kinds, strict=True):
        if kind == TokenType.CONTROL:
            backend.add_special_tokens([AddedToken(token, normalized=False)])
        elif kind == TokenType.USER_DEFINED:
            backend.add_tokens([AddedToken(token, normalized=False)])
    if published.has_bos and fields.get("tokenizer.ggml.add_bos_token", published.adds_bos):
        index = int(fields["tokenizer.ggml.bos_token_id"])
        bos = tokens[index]
        backend.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", [(bos, index)])
    return backend
