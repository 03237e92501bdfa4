"""GGUF to transformers' layout: the weights that the file says, and the published tokenizer by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, dequantize, quantize
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from conftest import build_model
from larosa.models import gguf
from larosa.models.gguf import GgufError, convert, read_tokenizer

NAMES = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def gguf_name(name: str) -> str:
    if name in OUTER:
        return OUTER[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    long = next(long for long in NAMES if rest.startswith(long))
    return f"blk.{layer}.{NAMES[long]}{rest.removeprefix(long)}"


def vocabulary(rows: int) -> tuple[list[str], list[int], list[str]]:
    """Bytes, some pairs, special tokens, one that is not special, and rows without a token."""
    merges = ["1 2", "l l", "Ċ Ċ", "Ġ h", "a b", "ab c"]
    tokens = [*sorted(ByteLevel.alphabet()), *("".join(pair.split()) for pair in merges)]
    kinds = [TokenType.NORMAL] * len(tokens)
    tokens += [*SPECIAL, "<tool_call>"]
    kinds += [TokenType.CONTROL] * len(SPECIAL) + [TokenType.USER_DEFINED]
    kinds += [TokenType.UNUSED] * (rows - len(tokens))
    tokens += [f"[PAD{index}]" for index in range(len(tokens), rows)]
    return tokens, kinds, merges


def interleaved(rows: Any, heads: int) -> Any:
    """The rows of q or k as llama.cpp keeps LLaMA's: pairs of a rotation side by side."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def write(
    path: Path,
    model: PreTrainedModel | None = None,
    pre: str = "qwen2",
    kind: str = "gpt2",
    tensors: dict[str, Any] | None = None,
    **more: Any,
) -> Path:
    """A GGUF file of a tiny model, whose matrices are Q8_0, or of its tokenizer alone."""
    writer = GGUFWriter(path, "qwen2" if model is None else model.config.model_type)
    tokens, kinds, merges = vocabulary(384)
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_chat_template("{{ messages }}")
    for key, value in more.items():
        writer.add_bool(f"tokenizer.ggml.{key}", value)
    if model is not None:
        config = model.config
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        if getattr(config, "head_dim", None):
            writer.add_key_length(config.head_dim)
            writer.add_value_length(config.head_dim)
        for name, tensor in model.state_dict().items():
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            weight = tensor.float().numpy()
            if weight.ndim == 2:
                packed = quantize(weight, GGMLQuantizationType.Q8_0)
                tensor.copy_(torch.from_numpy(dequantize(packed, GGMLQuantizationType.Q8_0)))
                if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
                    packed = interleaved(packed, len(weight) // config.head_dim)
                writer.add_tensor(gguf_name(name), packed, raw_dtype=GGMLQuantizationType.Q8_0)
            else:
                writer.add_tensor(gguf_name(name), weight.astype(np.float32))
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_converted_model_is_the_dequantised_one(tmp_path: Path, tokens: torch.Tensor) -> None:
    model = build_model("qwen2", torch.float32, hidden_size=64, intermediate_size=96, num_attention_heads=4)
    source, target = write(tmp_path / "tiny.gguf", model), tmp_path / "converted"
    target.mkdir()
    convert(source, target)
    converted = AutoModelForCausalLM.from_pretrained(target)
    assert converted.dtype == torch.float32
    assert not converted.config.tie_word_embeddings
    assert converted.config.rms_norm_eps == model.config.rms_norm_eps
    expected = model.state_dict()
    found = converted.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert torch.equal(converted(tokens).logits, model(tokens).logits)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(target)
    assert tokenizer.eos_token == "<|im_end|>"


def pieces(path: Path, text: str) -> list[str]:
    tokenizer = read_tokenizer(path)
    return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [
        ("smollm", "a\n\n12", ["a", "ĊĊ", "1", "2"]),
        ("smollm", "ab12", ["ab", "1", "2"]),
        ("qwen2", "a\n\n12", ["a", "ĊĊ", "1", "2"]),
        ("qwen2", "1212 h", ["1", "2", "1", "2", "Ġh"]),
        ("qwen2", "e\u0301", ["Ã", "©"]),  # NFC
        ("qwen2", "<|im_start|>ll<tool_call>", ["<|im_start|>", "ll", "<tool_call>"]),
        ("llama-bpe", "1212", ["<|im_start|>", "12", "1", "2"]),  # numbers of three digits
        ("llama-bpe", "e\u0301", ["<|im_start|>", "e", "Ì", "ģ"]),
    ],
)
def test_texts_are_cut_as_the_published_tokenizer_does(
    pre: str, text: str, expected: list[str], tmp_path: Path
) -> None:
    assert pieces(write(tmp_path / "a.gguf", pre=pre), text) == expected


def test_what_the_file_says_of_the_first_token_counts(tmp_path: Path) -> None:
    assert pieces(write(tmp_path / "a.gguf", pre="llama-bpe", add_bos_token=False), "ll") == ["ll"]
    assert pieces(write(tmp_path / "b.gguf", pre="smollm", add_bos_token=True), "ll") == ["<|im_start|>", "ll"]


def test_special_tokens_and_rows_without_a_token(tmp_path: Path) -> None:
    qwen = read_tokenizer(write(tmp_path / "a.gguf", pre="qwen2"))
    assert (qwen.bos_token, qwen.eos_token, qwen.pad_token) == (None, "<|im_end|>", "<|endoftext|>")
    assert len(qwen) == len(vocabulary(0)[0])
    assert qwen.chat_template == "{{ messages }}"
    assert qwen.decode(qwen("ll<|im_end|><tool_call>").input_ids, skip_special_tokens=True) == "ll<tool_call>"
    assert read_tokenizer(write(tmp_path / "b.gguf", pre="smollm")).bos_token == "<|im_start|>"


@pytest.mark.parametrize(("kind", "pre"), [("llama", "default"), ("gpt2", "deepseek-llm"), ("gpt2", "gpt-2")])
def test_another_tokenizer_ends_before_weights_are_read(
    kind: str, pre: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "a.gguf", pre=pre, kind=kind)
    monkeypatch.setattr(gguf, "AutoModelForCausalLM", None)
    with pytest.raises(
        GgufError, match=rf"model {kind}, tokenizer\.ggml\.pre {pre}\); expected gpt2 .*llama-bpe, qwen2"
    ):
        convert(source, tmp_path)


def test_what_is_no_gguf_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"PK" * 999)
    with pytest.raises(GgufError, match="cannot be read as GGUF"):
        read_tokenizer(tmp_path / "a.gguf")
    content = write(tmp_path / "b.gguf").read_bytes()
    (tmp_path / "b.gguf").write_bytes(content[: len(content) // 2])
    with pytest.raises(GgufError, match="cannot be read as GGUF"):
        read_tokenizer(tmp_path / "b.gguf")
