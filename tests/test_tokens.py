"""Token blocks: what is cut from the stream, in which order, and how shortage is reported."""

import logging

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from larosa.config.run import CalibrationConfig, TextConfig
from larosa.data.texts import TextError
from larosa.data.tokens import calibration_block, evaluation_block

BOS = 0
TEXT = TextConfig(name="numbers", source="files", join=" ")
DOCUMENTS = [" ".join(f"w{index}" for index in range(start, start + 10)) for start in range(1, 101, 10)]
"""Ten documents of ten words; word w<i> has id i, so a stream is 0 (BOS), 1, 2, ..., 100."""


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<s>": BOS} | {f"w{index}": index for index in range(1, 101)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<s>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=16, bos_token="<s>")


def settings(**changes: object) -> CalibrationConfig:
    values = {"sequences": 4, "length": 10, "sampling": "random", "batch_size": 1, "probe_sequences": 1}
    return CalibrationConfig.model_validate({"text": TEXT.model_dump(), **values, **changes})


def test_first_takes_the_beginning_with_one_bos(tokenizer: PreTrainedTokenizerFast) -> None:
    block = calibration_block(DOCUMENTS, tokenizer, settings(sampling="first"), seed=0)
    assert torch.equal(block.ids, torch.arange(40).view(4, 10))
    assert block.ids.dtype == torch.int64
    assert (block.text, block.documents, block.tokens_available) == ("numbers", 10, 101)


def test_random_windows_are_whole_disjoint_and_seeded(tokenizer: PreTrainedTokenizerFast) -> None:
    blocks = [calibration_block(DOCUMENTS, tokenizer, settings(), seed) for seed in (0, 0, 1)]
    starts = blocks[0].ids[:, 0]
    assert torch.equal(blocks[0].ids, starts[:, None] + torch.arange(10))
    assert (starts % 10 == 0).all()
    assert len(starts.unique()) == 4
    assert torch.equal(blocks[0].ids, blocks[1].ids)
    assert blocks[0].sha256 == blocks[1].sha256
    assert not torch.equal(blocks[0].ids, blocks[2].ids)


def test_random_can_draw_every_window_and_not_in_order(tokenizer: PreTrainedTokenizerFast) -> None:
    starts = [
        calibration_block(DOCUMENTS, tokenizer, settings(sequences=10), seed).ids[:, 0].tolist() for seed in range(3)
    ]
    assert all(sorted(row) == list(range(0, 100, 10)) for row in starts)
    assert any(row != sorted(row) for row in starts)


def test_the_seed_leaves_the_global_generator_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    calibration_block(DOCUMENTS, tokenizer, settings(), seed=0)
    assert torch.equal(torch.rand(1), expected)


def test_documents_are_joined_with_the_texts_own_string(tokenizer: PreTrainedTokenizerFast) -> None:
    text = TextConfig(name="numbers", source="files", join=" w100 ")
    block = evaluation_block(["w1", "w2"], tokenizer, text, length=4, max_tokens=None)
    assert block.ids.tolist() == [[BOS, 1, 100, 2]]


@pytest.mark.parametrize(("max_tokens", "blocks"), [(None, 14), (98, 14), (97, 13), (1000, 14), (7, 1)])
def test_evaluation_blocks(tokenizer: PreTrainedTokenizerFast, max_tokens: int | None, blocks: int) -> None:
    block = evaluation_block(DOCUMENTS, tokenizer, TEXT, length=7, max_tokens=max_tokens)
    assert torch.equal(block.ids, torch.arange(blocks * 7).view(blocks, 7))
    assert block.tokens_available == 101


def test_samples_are_blocks_drawn_with_the_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    def drawn(samples: int | None, seed: int = 0, max_tokens: int | None = None) -> list[int]:
        block = evaluation_block(DOCUMENTS, tokenizer, TEXT, 7, max_tokens, samples, seed)
        assert torch.equal(block.ids, block.ids[:, :1] + torch.arange(7))
        return [start // 7 for start in block.ids[:, 0].tolist()]

    assert drawn(5) == sorted(set(drawn(5)))
    assert len(drawn(5)) == 5
    assert drawn(5) == drawn(5) != drawn(5, seed=1)
    assert drawn(14) == drawn(None) == list(range(14))
    assert max(drawn(4, max_tokens=30)) < 4
    with pytest.raises(TextError, match=r"14 blocks of 7 tokens.*samples=15"):
        drawn(15)


def test_hash_names_shape_and_content(tokenizer: PreTrainedTokenizerFast) -> None:
    def digest(length: int, max_tokens: int) -> str:
        return evaluation_block(DOCUMENTS, tokenizer, TEXT, length, max_tokens).sha256

    assert digest(10, 20) == digest(10, 25)
    assert len({digest(10, 20), digest(20, 20), digest(10, 30)}) == 3


def test_too_short_for_calibration(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TextError, match=r"numbers has 101 tokens, 10 windows of 10.*needs 11.*sequences"):
        calibration_block(DOCUMENTS, tokenizer, settings(sequences=11), seed=0)


def test_too_short_for_evaluation(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TextError, match=r"101 tokens.*one block needs 102"):
        evaluation_block(DOCUMENTS, tokenizer, TEXT, length=102, max_tokens=None)
    with pytest.raises(TextError, match=r"max_tokens=9 .*one block needs 10"):
        evaluation_block(DOCUMENTS, tokenizer, TEXT, length=10, max_tokens=9)


def test_a_long_text_causes_no_length_warning(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        evaluation_block(DOCUMENTS, tokenizer, TEXT, length=10, max_tokens=None)
        assert caplog.messages == []
        tokenizer(" ".join(DOCUMENTS))
        assert "longer than" in caplog.text  # so the silence above means something
    finally:
        logger.removeHandler(caplog.handler)
